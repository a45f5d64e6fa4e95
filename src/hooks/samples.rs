//! The samples in `hooks/`, run as an operator would run them, with the real tools.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::ffi::OsStrExt,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::{tests::Place, *};
use crate::model::{ObjectId, RelPath};

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("hooks").join(name)
}

/// Copies a sample into place, in another process for the reason that scripts are written by one.
fn install(place: &Place, name: &str, hook: Hook) {
    let to = place.dir().join(hook.name());
    let done = Command::new("install").args(["-m", "755"]).arg(sample(name)).arg(to).status();
    assert!(done.unwrap().success());
}

fn configure(place: &Place, name: &str, text: &str) {
    fs::write(place.dir().join(format!("{name}.conf")), text).unwrap();
}

fn run(place: &Place, hook: Hook, changes: &Changes) -> Report {
    place.run_present(&Hooks::open(Some(&place.dir())), hook, changes)
}

/// A zip archive of one stored file.
fn zip(content: &[u8]) -> Vec<u8> {
    let size = u32::try_from(content.len()).unwrap().to_le_bytes();
    let crc = crc32fast::hash(content).to_le_bytes();
    // Version 2.0, no flags, stored, 1980-01-01; CRC, both sizes; a name of one byte, no extra.
    let common =
        [b"\x14\0\0\0\0\0\0\0\x21\0", crc.as_slice(), &size, &size, b"\x01\0\0\0"].concat();
    let local = [b"PK\x03\x04", common.as_slice(), b"a", content].concat();
    let central = [b"PK\x01\x02\x14\0", common.as_slice(), &[0; 14], b"a"].concat();
    let end = [
        b"PK\x05\x06\0\0\0\0\x01\0\x01\0".as_slice(),
        &u32::try_from(central.len()).unwrap().to_le_bytes(),
        &u32::try_from(local.len()).unwrap().to_le_bytes(),
        b"\0\0",
    ];
    [local, central, end.concat()].concat()
}

/// Archives under awkward names; those that are broken come second.
fn archives(place: &Place) -> (Changes, Vec<&'static [u8]>) {
    let good: &[&[u8]] = &[
        b"good.zip",
        b"a[1].war",
        b"-x.JAR",
        b"dir/new\nline.ear",
        b"\xff.aar",
        b"it's $HOME.zip",
    ];
    let broken: &[&[u8]] =
        &[b"cut.zip", b"dir/flip\nped.jar", b"b[2].WAR", b"-y.whl", b"\xfe.nupkg"];
    let deploy = place.deploy();
    let path = |name: &[u8]| deploy.join(std::ffi::OsStr::from_bytes(name));
    fs::create_dir(deploy.join("dir")).unwrap();
    for name in good {
        fs::write(path(name), zip(b"content")).unwrap();
    }
    for name in broken {
        let mut bytes = zip(b"content");
        bytes[35] ^= 1;
        fs::write(path(name), bytes).unwrap();
    }
    let whole = zip(b"content");
    fs::write(path(broken[0]), &whole[..whole.len() / 2]).unwrap();
    // Not archives, or not to be read: each would fail.
    fs::write(path(b"notes.txt"), "no archive").unwrap();
    fs::write(path(b"x.zip\nnotes"), "no archive").unwrap();
    symlink("cut.zip", path(b"link.zip")).unwrap();
    let others: [&[u8]; 4] = [b"notes.txt", b"x.zip\nnotes", b"link.zip", b"gone.war"];
    let all: Vec<_> =
        good.iter().chain(broken).copied().chain(others).map(|name| ('A', name)).collect();
    (place.changes(&all), broken.to_vec())
}

#[test]
fn verify_archives_refuses_the_broken_ones_by_name() {
    let place = Place::new();
    install(&place, "verify-archives", Hook::PreCommit);
    let (changes, broken) = archives(&place);
    let report = run(&place, Hook::PreCommit, &changes);
    let Outcome::Vetoed { code: 1, paths } = &report.outcome else { panic!("{report:?}") };
    let paths: Vec<_> = paths.iter().map(RelPath::as_bytes).collect();
    assert_eq!(paths, broken, "{}", report.output.text);
    assert!(report.output.text.contains("cut.zip is broken"), "{}", report.output.text);
    let good = place.changes(&[('M', b"a[1].war"), ('A', b"notes.txt"), ('D', b"gone.zip")]);
    assert_eq!(run(&place, Hook::PreCommit, &good).outcome, Outcome::Passed);
    assert_eq!(run(&place, Hook::PreCommit, &place.changes(&[])).outcome, Outcome::Passed);
}

#[test]
fn verify_archives_does_without_unzip() {
    let place = Place::new();
    let (changes, broken) = archives(&place);
    let tools = place.dir();
    for tool in ["sh", "grep", "xargs"] {
        symlink(Path::new("/usr/bin").join(tool), tools.join(tool)).unwrap();
    }
    let run = || {
        let mut command = Command::new(sample("verify-archives"));
        command.env("PATH", &tools).env("LANG", "C.UTF-8").env("DEPSYNC_CHANGES", changes.path());
        command.current_dir(place.deploy()).output().unwrap()
    };
    let neither = run();
    assert_eq!((neither.status.code(), neither.stdout), (Some(1), vec![]));
    if !Path::new("/usr/bin/python3").exists() {
        return;
    }
    symlink("/usr/bin/python3", tools.join("python3")).unwrap();
    let output = run();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.stdout, [broken.join(&0), vec![0]].concat(), "{text}");
    assert_eq!(output.status.code(), Some(1));
}

/// What a server on loopback was sent.
struct Request {
    head: String,
    body: Vec<u8>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// Runs `client` against a server that gives one answer; without one, it hangs up.
fn serve<T>(answer: Option<&str>, client: impl FnOnce(&str) -> T) -> (T, Option<Request>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    listener.set_nonblocking(true).unwrap();
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            let stream = accept(&listener)?;
            answer.map(|answer| exchange(&stream, answer))
        });
        (client(&url), server.join().unwrap())
    })
}

fn accept(listener: &TcpListener) -> Option<TcpStream> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(false).unwrap();
            return Some(stream);
        }
        thread::park_timeout(Duration::from_millis(5));
    }
    None
}

fn exchange(mut stream: &TcpStream, answer: &str) -> Request {
    let mut from = BufReader::new(stream);
    let mut request = Request { head: String::new(), body: Vec::new() };
    while from.read_line(&mut request.head).unwrap() > 2 {}
    let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    request.body.resize(length, 0);
    from.read_exact(&mut request.body).unwrap();
    let (status, body) = answer.split_once('\n').unwrap_or((answer, ""));
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .unwrap();
    request
}

fn notify(place: &Place, secret: &str, answer: Option<&str>) -> (Report, Option<Request>) {
    install(place, "notify-webhook", Hook::OnHeld);
    let file = place.dir().join("secret");
    fs::write(&file, secret).unwrap();
    serve(answer, |url| {
        let conf = format!("# where\nURL={url}/hook\nSECRET_FILE={}\n", file.display());
        configure(place, "notify-webhook", &conf);
        run(place, Hook::OnHeld, &place.changes(&[('D', b"a\nb"), ('D', b"c")]))
    })
}

#[test]
fn notify_webhook_signs_what_it_says() {
    let place = Place::new();
    for secret in ["s3cret", &"long ".repeat(13), &"x".repeat(64), "two\nlines\n"] {
        let (report, request) = notify(&place, secret, Some("204 No Content"));
        assert_eq!(report.outcome, Outcome::Passed, "{}", report.output.text);
        let request = request.unwrap();
        let key = secret.replace('\n', "");
        let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).unwrap();
        mac.update(&request.body);
        let hex = ObjectId::from_bytes(mac.finalize().into_bytes().into());
        assert_eq!(request.header("x-depsync-signature"), Some(&*format!("sha256={hex}")));
        assert!(request.head.starts_with("POST /hook HTTP/1.1\r\n"), "{}", request.head);
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        for (key, value) in [
            ("event", "on-held"),
            ("feed", "apps"),
            ("node", "hub \"1\""),
            ("region", "eu-west"),
            ("commit", &"ab".repeat(20)),
            ("previous", &"01".repeat(20)),
            ("reason", "2 deletions wait"),
        ] {
            assert_eq!(body[key], value, "{key}");
        }
        assert_eq!(body["changes"], 2);
        let time = body["time"].as_str().unwrap();
        assert!(chrono::DateTime::parse_from_rfc3339(time).is_ok(), "{time}");
    }
}

#[test]
fn notify_webhook_tries_again_while_nobody_answers() {
    let place = Place::new();
    for (answer, end) in [
        (None, End::Retry),
        (Some("503 Service Unavailable"), End::Retry),
        (Some("429 Too Many Requests"), End::Retry),
        (Some("403 Forbidden"), End::Failed),
        (Some("302 Found"), End::Failed),
    ] {
        let (report, _) = notify(&place, "s3cret", answer);
        assert_eq!(report.outcome.end(), end, "{answer:?}: {}", report.output.text);
    }
    fs::write(place.dir().join("secret"), "\n").unwrap();
    let report = run(&place, Hook::OnHeld, &place.changes(&[]));
    assert_eq!(report.outcome.end(), End::Failed, "an empty secret signs nothing");
    fs::remove_file(place.dir().join("notify-webhook.conf")).unwrap();
    let report = run(&place, Hook::OnHeld, &place.changes(&[]));
    assert_eq!(report.outcome.end(), End::Failed, "{}", report.output.text);
}

/// Exploded applications, one from a `.war`, one removed, and changes of each.
fn applications(place: &Place, app: &str) -> Changes {
    let deploy = place.deploy();
    for dir in ["webapps/unpacked", &format!("webapps/{app}/WEB-INF")] {
        fs::create_dir_all(deploy.join(dir)).unwrap();
    }
    fs::write(deploy.join("webapps/unpacked.war"), "").unwrap();
    let page = format!("webapps/{app}/index.html");
    let class = format!("webapps/{app}/WEB-INF/new\nline.class");
    place.changes(&[
        ('M', page.as_bytes()),
        ('A', class.as_bytes()),
        ('A', b"webapps/unpacked.war"),
        ('A', b"webapps/unpacked/index.html"),
        ('D', b"webapps/removed/index.html"),
        ('M', b"conf/server.xml"),
        ('M', b"webapps/readme.txt"),
    ])
}

#[test]
fn reload_tomcat_asks_the_manager_for_what_has_changed() {
    for (app, query, answer, end) in [
        ("shop", "path=%2fshop ", "200 OK\nOK - Reloaded application", End::Passed),
        ("a#b", "path=%2fa%2fb ", "200 OK\nOK - Reloaded application", End::Passed),
        ("ROOT", "path=%2f ", "200 OK\nOK - Reloaded application", End::Passed),
        ("shop", "path=%2fshop ", "200 OK\nFAIL - Encountered exception", End::Failed),
        ("shop", "path=%2fshop ", "401 Unauthorized\nno", End::Failed),
        ("shop", "path=%2fshop ", "503 Service Unavailable\nstarting", End::Retry),
    ] {
        let place = Place::new();
        install(&place, "reload-tomcat", Hook::PostCheckout);
        let changes = applications(&place, app);
        let netrc = place.dir().join("netrc");
        fs::write(&netrc, "machine 127.0.0.1 login deployer password s3cret\n").unwrap();
        let (report, request) = serve(Some(answer), |url| {
            let conf = format!("MANAGER={url}/manager/text\nNETRC={}\n", netrc.display());
            configure(&place, "reload-tomcat", &conf);
            run(&place, Hook::PostCheckout, &changes)
        });
        assert_eq!(report.outcome.end(), end, "{app} {answer}: {}", report.output.text);
        let request = request.unwrap();
        let line = request.head.lines().next().unwrap().to_lowercase();
        assert!(line.starts_with(&format!("get /manager/text/reload?{query}")), "{line}");
        assert_eq!(request.header("authorization"), Some("Basic ZGVwbG95ZXI6czNjcmV0"));
    }
}

#[test]
fn reload_tomcat_tries_again_while_tomcat_is_away() {
    let place = Place::new();
    install(&place, "reload-tomcat", Hook::PostCheckout);
    let changes = applications(&place, "shop");
    let (report, _) = serve(None, |url| {
        configure(&place, "reload-tomcat", &format!("MANAGER={url}"));
        run(&place, Hook::PostCheckout, &changes)
    });
    assert_eq!(report.outcome, Outcome::Retry, "{}", report.output.text);
    fs::remove_file(place.dir().join("reload-tomcat.conf")).unwrap();
    assert_eq!(run(&place, Hook::PostCheckout, &changes).outcome.end(), End::Failed);
}

#[test]
fn reload_tomcat_touches_what_tomcat_watches() {
    let place = Place::new();
    install(&place, "reload-tomcat", Hook::PostCheckout);
    let changes = applications(&place, "shop & co");
    let contexts = place.dir().join("contexts");
    fs::create_dir(&contexts).unwrap();
    let old = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    for name in ["shop & co.xml", "unpacked.xml"] {
        fs::File::create(contexts.join(name)).unwrap().set_modified(old).unwrap();
    }
    configure(&place, "reload-tomcat", &format!("TOUCH={}/%.xml\n", contexts.display()));
    let report = run(&place, Hook::PostCheckout, &changes);
    assert_eq!(report.outcome, Outcome::Passed, "{}", report.output.text);
    let modified = |name: &str| fs::metadata(contexts.join(name)).unwrap().modified().unwrap();
    assert!(modified("shop & co.xml") > old);
    assert_eq!(modified("unpacked.xml"), old);
    assert_eq!(fs::read_dir(&contexts).unwrap().count(), 2, "nothing is made");
}

/// Runs `restart-unit` with a `systemctl` that only prints, since the real one restarts something.
fn restart(place: &Place, conf: &str, changes: &Changes) -> (Option<i32>, String) {
    let tools = place.dir().join("tools");
    fs::create_dir_all(&tools).unwrap();
    let fake = tools.join("systemctl");
    if !fake.exists() {
        let script = r#"printf '#!/bin/sh\necho "$@"\n' >"$1" && chmod 755 "$1""#;
        let written = Command::new("sh").args(["-c", script, "sh"]).arg(&fake).status();
        assert!(written.unwrap().success());
    }
    install(place, "restart-unit", Hook::PostCheckout);
    configure(place, "restart-unit", conf);
    let output = Command::new(place.dir().join("post-checkout"))
        .env("PATH", format!("{}:/usr/bin:/bin", tools.display()))
        .env("DEPSYNC_CHANGES", changes.path())
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn restart_unit_restarts_what_is_configured() {
    let place = Place::new();
    let changes = place.changes(&[('M', b"webapps/a.war"), ('D', b"lib/odd\nname/x.jar")]);
    let restarted = |action| (Some(0), format!("--no-ask-password {action} -- tomcat@1.service\n"));
    for (conf, expected) in [
        ("UNIT=tomcat@1.service\n", restarted("restart")),
        ("UNIT=tomcat@1.service\nACTION=reload\n", restarted("reload")),
        ("UNIT=tomcat@1.service\nPATHS=lib/*.jar", restarted("restart")),
        ("UNIT=tomcat@1.service\nPATHS=conf/*", (Some(0), "no change in conf/*\n".to_owned())),
        ("UNIT=tomcat@1.service\nACTION=poweroff\n", (Some(1), String::new())),
        ("UNIT=--force\n", (Some(1), String::new())),
        ("", (Some(1), String::new())),
    ] {
        assert_eq!(restart(&place, conf, &changes), expected, "{conf}");
    }
}

#[test]
fn samples_are_executable_plain_sh() {
    let dir = sample("");
    let mut seen = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some() {
            continue;
        }
        seen += 1;
        let text = fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(text.starts_with(&format!("#!/bin/sh\n# {name}: ")), "{name}");
        assert!(text.contains("\nset -eu\n"), "{name}");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o111, 0o111, "{name}");
    }
    assert_eq!(seen, 4);
}
