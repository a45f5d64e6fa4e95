//! Who is let in, on real processes: TLS with certificates made here, tokens, and what they open.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::world::{DEPSYNC, World, curl, depsync, eventually, git};

/// A CA of its own, and what it has signed.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    cert: PathBuf,
}

impl Authority {
    fn new(world: &World, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let cert = world.path(&format!("{name}.crt"));
        fs::write(&cert, params.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: Issuer::new(params, key), cert }
    }

    /// Replaces the certificate and key of a node, as an operator would.
    fn sign(&self, folder: &Path) {
        let key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, "a node");
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(folder.join("node.crt"), cert.pem()).unwrap();
        secret(&folder.join("node.key"), &key.serialize_pem());
    }
}

fn secret(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A daemon that other machines could reach: it has TLS and asks for tokens.
struct Guarded {
    folder: PathBuf,
    ca: PathBuf,
    port: u16,
    child: Child,
}

impl Guarded {
    /// Starts `run` in a new folder; `config` is what stands behind `listen`, `state_dir` and `[tls]`.
    fn start(world: &World, authority: &Authority, name: &str, config: &str) -> Self {
        Self::start_with(world, authority, name, (0, "", config))
    }

    /// The same on a port, with further keys of the node.
    fn start_with(
        world: &World,
        authority: &Authority,
        name: &str,
        (port, keys, config): (u16, &str, &str),
    ) -> Self {
        let folder = world.folder(name);
        fs::create_dir_all(folder.join("dir")).unwrap();
        authority.sign(&folder);
        let ca = authority.cert.clone();
        let text = format!(
            "node = \"{name}\"\nlisten = \"0.0.0.0:{port}\"\nstate_dir = \"state\"\n{keys}\
             [tls]\ncert = \"node.crt\"\nkey = \"node.key\"\nca = \"{}\"\n{config}",
            ca.display()
        );
        fs::write(folder.join("depsync.toml"), text).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let child = Command::new(DEPSYNC)
            .args(["run", "--config"])
            .arg(folder.join("depsync.toml"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut node = Self { folder, ca, port: 0, child };
        node.port = eventually("it listens", || {
            let text = fs::read_to_string(node.folder.join("state/address")).unwrap_or_default();
            let port = text.trim().rsplit(':').next().and_then(|port| port.parse().ok());
            port.ok_or_else(|| node.log())
        });
        node
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// A talking command as the admin of that machine.
    fn admin(&self, arguments: &[&str]) -> Output {
        let (url, state) = (self.url(), self.folder.join("state"));
        let ca = self.ca.to_str().unwrap();
        let more = ["--url", &url, "--state", state.to_str().unwrap(), "--ca", ca];
        depsync(&[arguments, &more].concat())
    }

    /// Makes a token: its id, and the file in which it lies.
    fn token(&self, name: &str, arguments: &[&str]) -> (String, PathBuf) {
        let made = self.admin(&[&["token", "create", "--json"], arguments].concat());
        assert!(made.status.success(), "{made:?}");
        let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
        let file = self.folder.join(name);
        secret(&file, made["token"].as_str().unwrap());
        (made["id"].as_str().unwrap().to_owned(), file)
    }

    /// What is answered to a reader.
    fn body(&self, token: &Path, path: &str) -> String {
        let header = format!("Authorization: Bearer {}", fs::read_to_string(token).unwrap().trim());
        let (ca, url) = (self.ca.to_str().unwrap(), format!("{}{path}", self.url()));
        String::from_utf8(curl(&["--cacert", ca, "-H", &header, &url]).stdout).unwrap()
    }

    /// The head of the answer to a reader.
    fn answer(&self, token: &Path, path: &str) -> String {
        let header = format!("Authorization: Bearer {}", fs::read_to_string(token).unwrap().trim());
        let (ca, url) = (self.ca.to_str().unwrap(), format!("{}{path}", self.url()));
        let answer = curl(&["--cacert", ca, "-D", "-", "-o", "/dev/null", "-H", &header, &url]);
        String::from_utf8(answer.stdout).unwrap().to_lowercase()
    }

    /// The status of a request with a token or none.
    fn status(&self, token: Option<&Path>, arguments: &[&str], path: &str) -> String {
        let url = format!("{}{path}", self.url());
        let header = token.map(|file| {
            format!("Authorization: Bearer {}", fs::read_to_string(file).unwrap().trim())
        });
        let ca = self.ca.to_str().unwrap();
        let mut all = vec!["--cacert", ca, "-o", "/dev/null", "-w", "%{http_code}"];
        if let Some(header) = &header {
            all.extend(["-H", header]);
        }
        all.extend(arguments);
        all.push(&url);
        String::from_utf8(curl(&all).stdout).unwrap()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.folder.display(), self.log());
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A port that nobody listens on: where an address has to be known before the start.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

const PRIMARY: &str = "[[feed]]\nname = \"apps\"\ndir = \"dir\"\n";

fn mirror(upstream: &Guarded, token: &Path) -> String {
    format!(
        "[region]\nname = \"edge-1\"\n[[feed]]\nname = \"apps\"\nupstream = \"{}\"\n\
         token_file = \"{}\"\ndir = \"dir\"\n",
        upstream.url(),
        token.display()
    )
}

fn arrives(region: &Guarded, text: &str) {
    let path = region.folder.join("dir/a.txt");
    eventually("the file arrives", || match fs::read_to_string(&path) {
        Ok(have) if have == text => Ok(()),
        other => Err(format!("{other:?}\n{}", region.log())),
    });
}

#[test]
fn a_region_with_a_token_mirrors_over_tls_until_the_token_is_revoked() {
    let world = World::new();
    let authority = Authority::new(&world, "ca");
    let hub = Guarded::start(&world, &authority, "hub", PRIMARY);
    fs::write(hub.folder.join("dir/a.txt"), "one").unwrap();
    let (id, token) =
        hub.token("eu", &["--role", "mirror", "--feed", "apps", "--region", "edge-*"]);
    let region = Guarded::start(&world, &authority, "eu", &mirror(&hub, &token));
    arrives(&region, "one");

    // Exchanged: the second is in the file before the first is revoked.
    let (second, other) = hub.token("eu-2", &["--role", "mirror", "--region", "edge-1"]);
    fs::rename(&other, &token).unwrap();
    assert!(hub.admin(&["token", "revoke", &id]).status.success());
    fs::write(hub.folder.join("dir/a.txt"), "two").unwrap();
    arrives(&region, "two");

    assert!(hub.admin(&["token", "revoke", &second]).status.success());
    eventually("the region says that it is not let in", || {
        if region.log().contains("does not accept our token") { Ok(()) } else { Err(region.log()) }
    });
    let nodes = hub.admin(&["nodes"]);
    assert!(nodes.status.success(), "{nodes:?}");
}

#[test]
fn a_redirect_and_a_readers_token_of_the_hub_are_good_at_the_region() {
    let world = World::new();
    let authority = Authority::new(&world, "ca");
    let table = world.path("region.xml");
    let all = "<Regions><Region name=\"edge-1\"><IPRange>127.0.0.0/8</IPRange></Region></Regions>";
    fs::write(&table, all).unwrap();
    let regions = format!("regions = \"{}\"\n", table.display());
    let hub = Guarded::start_with(&world, &authority, "hub", (0, &regions, PRIMARY));
    fs::write(hub.folder.join("dir/a.txt"), "one").unwrap();
    let (_, token) = hub.token("eu", &["--role", "mirror", "--region", "edge-1"]);
    let (id, reader) = hub.token("reader", &["--role", "reader", "--feed", "apps"]);
    let port = free_port();
    let advertise = format!("advertise = \"https://localhost:{port}\"\n");
    let config = mirror(&hub, &token);
    let region = Guarded::start_with(&world, &authority, "eu", (port, &advertise, &config));
    arrives(&region, "one");

    let file = "/v1/feeds/apps/files/a.txt";
    let location = eventually("the hub leads there", || {
        let answer = hub.answer(&reader, file);
        let line = answer.lines().find_map(|line| line.strip_prefix("location: "));
        line.map(|line| line.trim().to_owned()).ok_or(answer)
    });
    assert!(location.contains(&format!(":{}/v1/feeds/apps/at/", region.port)), "{location}");
    let ca = authority.cert.to_str().unwrap();
    let followed = curl(&["-f", "--cacert", ca, &location]);
    assert_eq!(followed.stdout, b"one", "no token is shown there: {followed:?}");
    let bare = location.split('?').next().unwrap();
    assert!(!curl(&["-f", "--cacert", ca, bare]).status.success());
    let other = location.replace("a.txt", "b.txt");
    assert!(!curl(&["-f", "--cacert", ca, &other]).status.success());

    // Asked directly, also while the hub is away.
    let answers = |status: &'static str| {
        eventually("the region knows the reader", || {
            let found = region.status(Some(&reader), &[], file);
            if found == status { Ok(()) } else { Err(format!("{found}\n{}", region.log())) }
        });
    };
    answers("200");
    assert_eq!(region.status(Some(&reader), &[], "/v1/feeds/apps/packs/0..1"), "403");
    assert!(hub.admin(&["token", "revoke", &id]).status.success());
    answers("401");
    let (_, reader_of_all) = hub.token("second", &["--role", "reader"]);
    eventually("the region knows the second", || {
        match region.status(Some(&reader_of_all), &[], file).as_str() {
            "200" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    drop(hub);
    assert_eq!(region.status(Some(&reader_of_all), &[], file), "200", "the hub is away");
    assert_eq!(region.status(Some(&reader_of_all), &[], "/v1/nodes"), "403", "for the feed alone");
}

#[test]
fn who_did_what_is_shown_with_where_from_and_how_it_ended() {
    let world = World::new();
    let authority = Authority::new(&world, "ca");
    let hub = Guarded::start(&world, &authority, "hub", PRIMARY);
    let (id, writer) = hub.token("writer", &["--role", "writer", "--expires", "2d"]);
    let put = hub.status(Some(&writer), &["-T", "/etc/hostname"], "/v1/feeds/apps/files/b.txt");
    assert_eq!(put, "201");
    assert_eq!(hub.status(Some(&writer), &["-X", "POST"], "/v1/feeds/apps/sync"), "403");
    let audit = hub.admin(&["audit"]);
    let audit = String::from_utf8(audit.stdout).unwrap();
    let lines: Vec<&str> = audit.lines().collect();
    assert_eq!(lines.len(), 4, "{audit}");
    assert!(lines[1].contains("403") && lines[1].contains("POST /v1/feeds/apps/sync"), "{audit}");
    let who = format!("token {id}");
    assert!(lines[2].contains(&who) && lines[2].contains("PUT /v1/feeds/apps/files/b.txt"));
    assert!(lines[2].contains("127.0.0.1") && lines[2].contains("201"), "{audit}");
    assert!(lines[3].contains("admin") && lines[3].contains("\"role\":\"writer\""), "{audit}");
    let file = fs::read_to_string(hub.folder.join("state/audit.jsonl")).unwrap();
    assert_eq!(file.lines().count(), 3);
    assert!(!file.contains(fs::read_to_string(&writer).unwrap().trim()), "no secret is written");

    let tokens = String::from_utf8(hub.admin(&["token", "list"]).stdout).unwrap();
    assert!(tokens.contains("LAST USED") && tokens.contains("(in 1 days)"), "{tokens}");
}

#[test]
fn a_stolen_mirror_token_writes_nothing_and_reads_no_other_feed() {
    let world = World::new();
    let authority = Authority::new(&world, "ca");
    let other = "[[feed]]\nname = \"other\"\ndir = \"second\"\n";
    fs::create_dir_all(world.folder("hub").join("second")).unwrap();
    let hub = Guarded::start(&world, &authority, "hub", &format!("{PRIMARY}{other}"));
    fs::write(hub.folder.join("dir/a.txt"), "one").unwrap();
    let (_, stolen) =
        hub.token("stolen", &["--role", "mirror", "--feed", "apps", "--region", "eu"]);
    eventually("the file is committed", || {
        match hub.status(Some(&stolen), &[], "/v1/feeds/apps/files/a.txt").as_str() {
            "200" => Ok(()),
            status => Err(status.to_owned()),
        }
    });
    for (arguments, path, expected) in [
        (&["-T", "/etc/hostname"][..], "/v1/feeds/apps/files/b.txt", "403"),
        (&["-X", "DELETE"], "/v1/feeds/apps/files/a.txt", "403"),
        (&["-X", "POST"], "/v1/feeds/apps/sync", "403"),
        (&["-X", "POST"], "/v1/tokens", "403"),
        (&[], "/v1/tokens", "403"),
        (&[], "/v1/feeds/other/files/a.txt", "403"),
        (&[], "/v1/feeds/other/packs/0..1", "403"),
        (&[], "/git/other.git/info/refs?service=git-upload-pack", "403"),
        (&[], "/v1/runs", "403"),
        (&[], "/v1/feeds/apps", "200"),
    ] {
        assert_eq!(hub.status(Some(&stolen), arguments, path), expected, "{path}");
        let nobody = hub.status(None, arguments, path);
        assert_eq!(nobody, "401", "{path} without a token");
    }
    assert_eq!(hub.status(None, &[], "/livez"), "200");
    assert_eq!(fs::read_dir(hub.folder.join("dir")).unwrap().count(), 1);

    // It names the region eu: it is not good for another one.
    let thief = Guarded::start(&world, &authority, "thief", &mirror(&hub, &stolen));
    eventually("it is turned away", || {
        if thief.log().contains("does not accept our token") { Ok(()) } else { Err(thief.log()) }
    });
    assert_eq!(fs::read_dir(thief.folder.join("dir")).unwrap().count(), 0);
}

#[test]
fn h4_a_token_exchanged_during_a_transfer_disturbs_nothing_and_an_expired_one_is_named() {
    const SIZE: usize = 8_000_000;
    let world = World::new();
    let authority = Authority::new(&world, "ca");
    let slow = format!("{PRIMARY}[bandwidth]\nreplication = \"3MB/s\"\n");
    let hub = Guarded::start(&world, &authority, "hub", &slow);
    let big: Vec<u8> =
        (0..SIZE as u32 / 4).flat_map(|n| n.wrapping_mul(0x9e37_79b1).to_le_bytes()).collect();
    fs::write(hub.folder.join("dir/big.bin"), &big).unwrap();
    let (first, token) = hub.token("eu", &["--role", "mirror", "--region", "edge-1"]);
    let (_, reader) = hub.token("reader", &["--role", "reader"]);
    let region = Guarded::start(&world, &authority, "eu", &mirror(&hub, &token));
    let sent = || -> usize {
        let metrics = hub.body(&reader, "/metrics");
        let name = "depsync_sent_bytes_total{class=\"replication\"} ";
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(0, |count| count.trim().parse().unwrap())
    };
    eventually("the transfer is under way", || match sent() {
        1_000_000.. => Ok(()),
        other => Err(other.to_string()),
    });
    let (_, other) = hub.token("eu-2", &["--role", "mirror", "--region", "edge-1"]);
    fs::rename(&other, &token).unwrap();
    assert!(hub.admin(&["token", "revoke", &first]).status.success());
    assert!(sent() < SIZE, "it was over before the token was exchanged");
    eventually("the file arrives", || match fs::read(region.folder.join("dir/big.bin")) {
        Ok(have) if have == big => Ok(()),
        other => Err(format!("{:?}\n{}", other.map(|have| have.len()), region.log())),
    });
    assert!(sent() < SIZE * 5 / 4, "it began again: {}", sent());

    let (_, short) = hub.token("short", &["--role", "reader", "--expires", "1s"]);
    eventually("it has expired", || match hub.status(Some(&short), &[], "/v1/feeds").as_str() {
        "401" => Ok(()),
        other => Err(other.to_owned()),
    });
    let why = hub.body(&short, "/v1/feeds");
    assert!(why.contains("has expired or was revoked"), "{why}");
}

#[test]
fn a_region_is_not_taken_over_whatever_node_somebody_claims_to_be() {
    let world = World::new();
    let authority = Authority::new(&world, "ca");
    let hub = Guarded::start(&world, &authority, "hub", PRIMARY);
    fs::write(hub.folder.join("dir/a.txt"), "one").unwrap();
    let (_, token) = hub.token("eu", &["--role", "mirror", "--region", "edge-1"]);
    let (_, other) = hub.token("other", &["--role", "mirror", "--region", "edge-*"]);
    let (_, plain) = hub.token("plain", &["--role", "mirror"]);
    let region = Guarded::start(&world, &authority, "eu", &mirror(&hub, &token));
    arrives(&region, "one");
    let standing = |label: &str| {
        let nodes = hub.admin(&["nodes", "--json"]);
        let nodes: serde_json::Value = serde_json::from_slice(&nodes.stdout).unwrap();
        let nodes = nodes["nodes"].as_array().unwrap().clone();
        let node = nodes.iter().find(|node| node["label"] == label);
        node.map_or("absent".to_owned(), |node| node["feeds"][0]["standing"].to_string())
    };
    // The same node id with another token, be it good for the region.
    let claimed = world.folder("claimed").join("state");
    fs::create_dir_all(&claimed).unwrap();
    fs::copy(region.folder.join("state/node"), claimed.join("node")).unwrap();
    let thief = Guarded::start(&world, &authority, "claimed", &mirror(&hub, &other));
    eventually("it is turned away", || {
        if thief.log().contains("does not accept our token") { Ok(()) } else { Err(thief.log()) }
    });
    // Another node: it stands by, or, with a token that names no region, is a mirror and no more.
    for (name, token, expected) in
        [("second", &other, "\"standby\""), ("third", &plain, "\"mirror\"")]
    {
        let node = Guarded::start(&world, &authority, name, &mirror(&hub, token));
        arrives(&node, "one");
        eventually("it is listed", || match standing(name) {
            found if found == expected => Ok(()),
            other => Err(other),
        });
    }
    assert_eq!(standing("eu"), "\"serving\"");
}

#[test]
fn certificates_are_verified_and_exchanged_while_the_node_runs() {
    let world = World::new();
    let authority = Authority::new(&world, "ca");
    let foreign = Authority::new(&world, "foreign");
    let hub = Guarded::start(&world, &authority, "hub", PRIMARY);
    let (_, token) = hub.token("eu", &["--role", "mirror", "--region", "edge-1"]);
    // A region that believes another CA does not talk to this hub.
    let stranger = Guarded::start(&world, &foreign, "stranger", &mirror(&hub, &token));
    eventually("the certificate is refused", || {
        if stranger.log().contains("certificate") { Ok(()) } else { Err(stranger.log()) }
    });
    let url = format!("{}/livez", hub.url());
    let foreign_ca = foreign.cert.to_str().unwrap();
    assert!(!curl(&["--cacert", foreign_ca, &url]).status.success());
    let plain = url.replace("https", "http");
    assert!(!curl(&["-f", &plain]).status.success(), "nothing is served without TLS");

    foreign.sign(&hub.folder);
    eventually("the new certificate is in force", || {
        let answer = curl(&["-f", "--cacert", foreign_ca, &url]);
        if answer.status.success() { Ok(()) } else { Err(hub.log()) }
    });
    secret(&hub.folder.join("node.crt"), "not a certificate");
    eventually("the bad one is told", || {
        if hub.log().contains("cannot be used") { Ok(()) } else { Err(hub.log()) }
    });
    assert!(curl(&["-f", "--cacert", foreign_ca, &url]).status.success(), "the old one stays");
}

#[test]
fn what_is_unsafe_does_not_start() {
    let world = World::new();
    let authority = Authority::new(&world, "ca");
    let folder = world.folder("hub");
    fs::create_dir_all(folder.join("dir")).unwrap();
    authority.sign(&folder);
    let config = folder.join("depsync.toml");
    let listen = "listen = \"0.0.0.0:0\"\nstate_dir = \"state\"\n";
    for (tls, mode, expected) in [
        ("", 0o600, "name a certificate in [tls]"),
        ("[tls]\ncert = \"node.crt\"\n", 0o600, "name both cert and key"),
        ("[tls]\ncert = \"none.crt\"\nkey = \"node.key\"\n", 0o600, "none.crt cannot be read"),
        ("[tls]\ncert = \"node.crt\"\nkey = \"node.key\"\n", 0o644, "chmod 600"),
        ("[tls]\ncert = \"node.key\"\nkey = \"node.key\"\n", 0o600, "no certificate in PEM"),
    ] {
        fs::set_permissions(folder.join("node.key"), fs::Permissions::from_mode(mode)).unwrap();
        fs::write(&config, format!("{listen}{tls}{PRIMARY}")).unwrap();
        let output = depsync(&["run", "--config", config.to_str().unwrap()]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{tls}: {text}");
        assert!(text.contains(expected), "{tls}: {text}");
    }
}

/// A key of its own, and the line that believes it.
fn key(world: &World, name: &str) -> (PathBuf, String) {
    let path = world.path(name);
    let made = depsync(&["key", "create", path.to_str().unwrap(), "--name", name]);
    assert!(made.status.success(), "{made:?}");
    (path, String::from_utf8(made.stdout).unwrap())
}

#[test]
fn stock_git_and_ssh_keygen_accept_our_signatures() {
    let world = World::new();
    let authority = Authority::new(&world, "ca");
    let (key, line) = key(&world, "hub-1");
    let signed = format!("{PRIMARY}sign_with = \"{}\"\n", key.display());
    let hub = Guarded::start(&world, &authority, "hub", &signed);
    fs::write(hub.folder.join("dir/a.txt"), "one").unwrap();
    let repository = hub.folder.join("state/feeds/apps/git");
    eventually("it is committed", || {
        let head = repository.join("refs/heads/main");
        if head.exists() { Ok(()) } else { Err(hub.log()) }
    });
    let trusted = world.path("allowed_signers");
    fs::write(&trusted, &line).unwrap();
    let allowed = format!("gpg.ssh.allowedSignersFile={}", trusted.display());
    let verify = ["-c", &allowed, "verify-commit", "-v", "main"];
    let verified = git(&repository, &verify);
    assert!(verified.status.success(), "{verified:?}");
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(said.contains("Good \"git\" signature for hub-1"), "{said}");
    assert!(git(&repository, &["fsck", "--full", "--strict"]).status.success());

    // The same by ssh-keygen alone, on what git shows.
    let commit = git(&repository, &["cat-file", "commit", "main"]).stdout;
    let commit = String::from_utf8(commit).unwrap();
    let (before, rest) = commit.split_once("gpgsig ").unwrap();
    let (pem, after) = rest.split_once("-----END SSH SIGNATURE-----\n").unwrap();
    let pem = format!("{pem}-----END SSH SIGNATURE-----\n").replace("\n ", "\n");
    fs::write(world.path("commit.sig"), pem).unwrap();
    fs::write(world.path("commit"), format!("{before}{after}")).unwrap();
    let check = |file: &str| {
        Command::new("ssh-keygen")
            .args(["-Y", "verify", "-n", "git", "-I", "hub-1", "-f"])
            .arg(&trusted)
            .arg("-s")
            .arg(world.path("commit.sig"))
            .stdin(fs::File::open(world.path(file)).unwrap())
            .output()
            .unwrap()
    };
    let verified = check("commit");
    assert!(verified.status.success(), "{verified:?}");
    fs::write(world.path("other"), format!("{before}{after}.")).unwrap();
    assert!(!check("other").status.success());
}

#[test]
fn what_no_trusted_key_has_signed_is_not_checked_out() {
    let world = World::new();
    let authority = Authority::new(&world, "ca");
    let ((ours, line), (theirs, other)) = (key(&world, "ours"), key(&world, "theirs"));
    let signing = world.path("signing.key");
    fs::copy(&ours, &signing).unwrap();
    let signed = format!("{PRIMARY}sign_with = \"{}\"\n", signing.display());
    let hub = Guarded::start(&world, &authority, "hub", &signed);
    let (_, token) = hub.token("eu", &["--role", "mirror", "--region", "edge-1"]);
    let trusted = world.path("allowed_signers");
    fs::write(&trusted, &line).unwrap();
    let config = format!("{}trusted_keys = \"{}\"\n", mirror(&hub, &token), trusted.display());
    let region = Guarded::start(&world, &authority, "eu", &config);
    fs::write(hub.folder.join("dir/a.txt"), "one").unwrap();
    arrives(&region, "one");

    // Somebody commits with another key: the old release stays, and both say why.
    fs::copy(&theirs, &signing).unwrap();
    fs::write(hub.folder.join("dir/a.txt"), "two").unwrap();
    eventually("the region refuses it", || {
        if region.log().contains("which is not in") { Ok(()) } else { Err(region.log()) }
    });
    assert_eq!(fs::read_to_string(region.folder.join("dir/a.txt")).unwrap(), "one");
    eventually("the primary hears of it", || {
        let nodes = String::from_utf8(hub.admin(&["nodes", "--json"]).stdout).unwrap();
        if nodes.contains("which is not in") { Ok(()) } else { Err(nodes) }
    });

    // Once the key is believed it goes on.
    fs::write(&trusted, format!("{line}{other}")).unwrap();
    fs::write(hub.folder.join("dir/b.txt"), "three").unwrap();
    arrives(&region, "two");
}
