//! The same files from this node and from nginx, by the same client, in turns.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::{
    noise, published, seconds,
    world::{World, eventually},
};

/// Turns of each; the ratio of medians counts.
const TURNS: usize = 5;

struct Nginx(Child);

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master takes its workers along when it is asked to.
        Command::new("kill").arg(self.0.id().to_string()).status().ok();
        self.0.wait().ok();
    }
}

fn configuration(place: &Path, files: &Path, port: u16, mirror: &str) -> String {
    let place = place.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {place}/{kind};\n"))
        .concat();
    format!(
        "daemon off; worker_processes 2; pid {place}/pid; error_log {place}/log;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; sendfile on; keepalive_requests 1000000000;\n{temporary}\
         geo $region {{ default none; 127.0.0.0/8 eu; 10.0.0.0/8 us; }}\n\
         server {{ listen 127.0.0.1:{port}; root {};\n\
         location /redirect/ {{ if ($region = eu) {{ return 307 {mirror}$uri; }} }} }} }}\n",
        files.display()
    )
}

/// Requests and bytes per second.
fn wrk(url: &str, secs: u64) -> (f64, f64) {
    let output = Command::new("wrk")
        .args(["-t1", "-c64", &format!("-d{secs}s"), url])
        .output()
        .expect("wrk runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.contains("Non-2xx") || text.contains("redirect"), "{url}: {text}");
    let figure = |name: &str| {
        let line = text.lines().find(|line| line.trim().starts_with(name))?;
        let value = line.rsplit(' ').next()?;
        let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &value[digits.len()..] {
            "KB" => 1024.0,
            "MB" => 1024.0 * 1024.0,
            "GB" => 1024.0 * 1024.0 * 1024.0,
            _ => 1.0,
        };
        Some(digits.parse::<f64>().ok()? * unit)
    };
    let figures = figure("Requests/sec:").zip(figure("Transfer/sec:"));
    figures.unwrap_or_else(|| unreachable!("wrk says so: {text}"))
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Prints what both reach, and the ratio.
pub(crate) fn compare() {
    let there = |program: &str| {
        Command::new(program).arg("-v").stderr(Stdio::null()).stdout(Stdio::null()).status().is_ok()
    };
    for (program, package) in [("nginx", "nginx-light"), ("wrk", "wrk")] {
        if !there(program) {
            println!("nginx: not measured, since {program} is missing (Debian: {package})");
            return;
        }
    }
    let world = World::new();
    let table = world.path("region.xml");
    fs::write(
        &table,
        "<Regions><Region name=\"eu\"><IPRange>127.0.0.0/8</IPRange></Region></Regions>",
    )
    .expect("the table");
    let hub = world.primary_with("hub", &["--regions", table.to_str().expect("a path")]);
    let eu = world.region("eu", &hub);
    fs::write(hub.dir.join("small.bin"), noise(1, 10 << 10)).expect("a file");
    fs::write(hub.dir.join("large.bin"), noise(1, 1 << 20)).expect("a file");
    published(&hub, 2);
    let commit = hub.commit();
    let below =
        |node: &crate::world::Node, path: &str| format!("{}/v1/feeds/default/{path}", node.url());
    eventually("the region serves", || {
        let regions = hub.get("/v1/regions");
        let node = &regions["regions"][0]["nodes"][0];
        if node.is_null() { Err(regions.to_string()) } else { Ok(()) }
    });

    let port =
        TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
    let place = world.folder("nginx");
    let mirror = below(&eu, &format!("at/{commit}"));
    let file = place.join("conf");
    fs::write(&file, configuration(&place, &hub.dir, port, &mirror)).expect("the configuration");
    let child = Command::new("nginx").arg("-c").arg(&file).stderr(Stdio::null()).spawn();
    let _nginx = Nginx(child.expect("nginx runs"));
    let other = format!("http://127.0.0.1:{port}");
    eventually("nginx listens", || {
        std::net::TcpStream::connect(("127.0.0.1", port))
            .map(drop)
            .map_err(|error| error.to_string())
    });

    let at = |name: &str| below(&hub, &format!("at/{commit}/{name}"));
    let files = |name: &str| below(&hub, &format!("files/{name}"));
    let rows = [
        ("10 KiB files", format!("{other}/small.bin"), at("small.bin"), false, 0.7),
        ("1 MiB files", format!("{other}/large.bin"), at("large.bin"), true, 1.0),
        ("redirects", format!("{other}/redirect/small.bin"), files("small.bin"), false, 0.7),
    ];
    for (what, theirs, ours, by_bytes, least) in rows {
        let mut figures = [Vec::new(), Vec::new()];
        for _ in 0..TURNS {
            for (figures, url) in figures.iter_mut().zip([&theirs, &ours]) {
                let (requests, bytes) = wrk(url, seconds(3));
                figures.push(if by_bytes { bytes / 1e6 } else { requests });
            }
        }
        let [theirs, ours] = figures.map(median);
        let unit = if by_bytes { "MB/s" } else { "requests/s" };
        let ratio = ours / theirs;
        println!(
            "{what}: nginx {theirs:.0}, depsync {ours:.0} {unit}: ratio {ratio:.2} (wanted {least})"
        );
    }
}
