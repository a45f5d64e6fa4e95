//! Who serves a compute host, and with which bytes.

use std::fs;

use crate::{
    oracle::{sha256, wait_equal},
    world::{Node, World, curl, eventually},
};

/// The status and `Location` of a `GET` from the client address `from`.
fn ask(node: &Node, path: &str, from: &str, more: &[&str]) -> (String, String) {
    let url = format!("{}{path}", node.url());
    let wanted =
        ["-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", "--interface", from, &url];
    let output = curl(&[&wanted[..], more].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    let (status, location) = text.split_once(' ').unwrap();
    (status.to_owned(), location.to_owned())
}

const FILE: &str = "/v1/feeds/default/files/app.war";

#[test]
fn a_host_in_a_regions_range_is_sent_there_and_one_outside_is_served_here() {
    let world = World::new();
    let table = world.path("region.xml");
    fs::write(
        &table,
        "<Regions><Region name=\"eu\"><IPRange>127.0.1.0/24</IPRange></Region></Regions>",
    )
    .unwrap();
    let hub = world.primary_with("hub", &["--regions", table.to_str().unwrap()]);
    let mut eu = world.region("eu", &hub);
    fs::write(hub.dir.join("app.war"), vec![5; 1_500_000]).unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);

    let commit = hub.commit();
    let (status, location) =
        eventually("the region is known", || match ask(&hub, FILE, "127.0.1.9", &[]) {
            (status, location) if status == "307" => Ok((status, location)),
            other => Err(format!("{other:?}")),
        });
    assert_eq!(status, "307");
    let wanted = format!("{}/v1/feeds/default/at/{commit}/app.war", eu.url());
    assert!(location.starts_with(&wanted), "{location}");
    assert_eq!(ask(&hub, FILE, "127.0.2.9", &[]).0, "200");

    let got = world.path("got");
    let url = format!("{}{FILE}", hub.url());
    curl(&["-fL", "--interface", "127.0.1.9", "-o", got.to_str().unwrap(), &url]);
    assert_eq!(sha256(&got), sha256(&hub.dir.join("app.war")));

    eu.kill();
    eventually("the primary serves in the dead region's place", || {
        match ask(&hub, FILE, "127.0.1.9", &[]).0.as_str() {
            "200" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
}

#[test]
fn a_resource_group_leads_to_its_region() {
    let world = World::new();
    let table = world.path("region.xml");
    fs::write(
        &table,
        "<Regions><Region name=\"eu\"><ResourceGroup>ComputeEU</ResourceGroup></Region></Regions>",
    )
    .unwrap();
    let hub = world.primary_with("hub", &["--regions", table.to_str().unwrap()]);
    let eu = world.region("eu", &hub);
    fs::write(hub.dir.join("app.war"), "x").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    let group = ["-H", "X-Resource-Group: ComputeEU"];
    eventually("sent to the region", || match ask(&hub, FILE, "127.0.0.1", &group) {
        (status, location) if status == "307" && location.starts_with(&eu.url()) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let query = format!("{FILE}?resource_group=ComputeEU");
    assert_eq!(ask(&hub, &query, "127.0.0.1", &[]).0, "307");
    assert_eq!(ask(&hub, FILE, "127.0.0.1", &[]).0, "200");
    assert_eq!(ask(&hub, FILE, "127.0.0.1", &["-H", "X-Resource-Group: Other"]).0, "200");
    let got = world.path("got");
    for (group, from) in [("ComputeEU", eu.url()), ("Other", hub.url())] {
        let to = ["-o", got.to_str().unwrap(), "--json"];
        let command = ["get", "default/app.war", "--resource-group", group];
        let output = hub.command(&[&command[..], &to].concat());
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(told["from"], *from, "{group}: {output:?}");
        assert_eq!(fs::read(&got).unwrap(), b"x");
    }
}

#[test]
fn what_is_put_is_published_and_what_is_wrong_leaves_nothing() {
    let world = World::new();
    let hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    let local = world.path("local.war");
    fs::write(&local, vec![9; 800_000]).unwrap();
    let put = hub.command(&["put", local.to_str().unwrap(), "default/new/folder/app.war"]);
    assert!(put.status.success(), "{put:?}");
    eventually("it arrives", || crate::oracle::compare(&hub.dir, &eu.dir));
    assert_eq!(sha256(&eu.dir.join("new/folder/app.war")), sha256(&local));

    let got = world.path("got.war");
    let get = eu.command(&["get", "default/new/folder/app.war", "-o", got.to_str().unwrap()]);
    assert!(get.status.success(), "{get:?}");
    assert_eq!(sha256(&got), sha256(&local));

    let token = hub.bearer();
    let status = |arguments: &[&str], path: &str| {
        let url = format!("{}/v1/feeds/default/files/{path}", hub.url());
        let output = curl(
            &[&["-o", "/dev/null", "-w", "%{http_code}", "--path-as-is"], arguments, &[&url]]
                .concat(),
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let body = ["-T", local.to_str().unwrap()];
    let upload =
        |more: &[&str], path: &str| status(&[&body[..], &["-H", &token], more].concat(), path);
    assert_eq!(status(&body, "no-token"), "401");
    assert_eq!(
        upload(
            &["-H", "Repr-Digest: sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:"],
            "wrong"
        ),
        "422"
    );
    for path in ["..%2fescaped", "a/..%2f..%2fescaped", "x%00y", "%2fetc%2fescaped"] {
        assert_eq!(upload(&[], path), "400", "{path}");
    }
    for path in [".git/config", ".depsync/x"] {
        assert!(["400", "422"].contains(&upload(&[], path).as_str()), "{path}");
    }
    assert_eq!(status(&["-H", "Host: attacker.example"], "new/folder/app.war"), "421");
    let names: Vec<_> =
        fs::read_dir(&hub.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["new"], "a refused upload left something");

    let rm = hub.command(&["rm", "default/new/folder/app.war"]);
    assert!(rm.status.success(), "{rm:?}");
    eventually("it is gone", || match eu.dir.join("new/folder/app.war").exists() {
        true => Err("still there".into()),
        false => Ok(()),
    });
}

#[test]
fn ranges_conditions_and_heads_answer_as_a_cache_expects() {
    let world = World::new();
    let hub = world.primary("hub");
    let bytes: Vec<u8> = (0..900_000_u32).map(|n| (n % 251) as u8).collect();
    fs::write(hub.dir.join("app.war"), &bytes).unwrap();
    fs::write(hub.dir.join("small.txt"), "0123456789").unwrap();
    let url = |name: &str| format!("{}/v1/feeds/default/files/{name}", hub.url());
    eventually("published", || {
        let output = curl(&["-f", &url("app.war")]);
        if output.stdout == bytes { Ok(()) } else { Err(format!("{} bytes", output.stdout.len())) }
    });
    assert_eq!(curl(&["-r", "100-299", &url("app.war")]).stdout, &bytes[100..300]);
    assert_eq!(curl(&["-r", "-5", &url("small.txt")]).stdout, b"56789");
    assert_eq!(curl(&["-r", "7-", &url("small.txt")]).stdout, b"789");

    let head = String::from_utf8(curl(&["-I", &url("app.war")]).stdout).unwrap().to_lowercase();
    let sha = sha256(&hub.dir.join("app.war")).unwrap();
    assert!(head.contains("content-length: 900000"), "{head}");
    assert!(
        head.contains("accept-ranges: bytes") && head.contains("repr-digest: sha-256=:"),
        "{head}"
    );
    assert!(head.contains(&format!("x-depsync-commit: {}", hub.commit())), "{head}");
    assert!(head.contains(&format!("etag: \"{sha}\"")), "{head}");

    let code = |more: &[&str]| {
        let address = url("app.war");
        let output =
            curl(&[&["-o", "/dev/null", "-w", "%{http_code}"], more, &[&address]].concat());
        String::from_utf8(output.stdout).unwrap()
    };
    let tag = format!("\"{sha}\"");
    assert_eq!(code(&["-H", &format!("If-None-Match: {tag}")]), "304");
    assert_eq!(code(&["-H", "If-Match: \"other\""]), "412");
    assert_eq!(code(&["-r", "900000-"]), "416");
    assert_eq!(code(&["-r", "0-9", "-H", &format!("If-Range: {tag}")]), "206");
    assert_eq!(code(&["-r", "0-9", "-H", "If-Range: \"other\""]), "200");
}
