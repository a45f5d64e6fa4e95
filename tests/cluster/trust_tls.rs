//! Certificates on real processes, made here: whom a node believes, what it shows, and how both are
//! exchanged while it runs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    guarded::{Authority, Guarded, PRIMARY, arrives, mirror, secret},
    proxy::Proxy,
    world::{World, curl, eventually},
};

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
        let said = format!("{}/: its certificate is not signed by an authority that", hub.url());
        if stranger.log().contains(&said) { Ok(()) } else { Err(stranger.log()) }
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

/// A certificate of a CA and its key, in a folder of their own.
fn issued(world: &World, authority: &Authority, name: &str) -> [PathBuf; 2] {
    let folder = world.folder(name);
    authority.sign(&folder);
    [folder.join("node.crt"), folder.join("node.key")]
}

/// Whether a connection comes about with that certificate, or none.
fn is_let_in(hub: &Guarded, shown: Option<&[PathBuf; 2]>) -> bool {
    let url = format!("{}/livez", hub.url());
    let mut arguments = vec!["-f", "--cacert", hub.ca.to_str().unwrap()];
    if let Some([cert, key]) = shown {
        arguments.extend(["--cert", cert.to_str().unwrap(), "--key", key.to_str().unwrap()]);
    }
    arguments.push(&url);
    curl(&arguments).status.success()
}

#[test]
fn clients_show_certificates_where_a_ca_is_named_and_transfers_outlive_an_exchange() {
    const SIZE: u32 = 8_000_000;
    let world = World::new();
    let authority = Authority::new(&world, "ca");
    let (clients, later) = (Authority::new(&world, "clients"), Authority::new(&world, "later"));
    let foreign = issued(&world, &Authority::new(&world, "foreign"), "of-foreign");
    let (own, next) = (issued(&world, &clients, "of-clients"), issued(&world, &later, "of-later"));
    let ca = world.path("client-ca.crt");
    fs::copy(&clients.cert, &ca).unwrap();
    let asking = format!("client_ca = {ca:?}\n{PRIMARY}[bandwidth]\nreplication = \"3MB/s\"\n");
    let mut hub = Guarded::start(&world, &authority, "hub", &asking);
    assert!(is_let_in(&hub, Some(&own)));
    assert!(!is_let_in(&hub, None) && !is_let_in(&hub, Some(&foreign)));
    hub.shown = Some(own.clone());
    assert_eq!(hub.status(None, &[], "/v1/feeds"), "401", "a certificate is no token");
    fs::write(hub.folder.join("dir/a.txt"), "one").unwrap();
    let (_, token) = hub.token("eu", &["--role", "mirror", "--region", "edge-1"]);

    // A region that shows none of that CA hears nothing; one that does mirrors.
    let link = Proxy::to_address(([127, 0, 0, 1], hub.port).into());
    let port = link.url().rsplit(':').next().unwrap().to_owned();
    let from = mirror(&hub, &token).replace(&hub.url(), &format!("https://localhost:{port}"));
    let stranger = Guarded::start(&world, &authority, "stranger", &from);
    // What it shows, being asked, is its own, which is of another CA.
    eventually("it is turned away", || {
        let said = "does not trust the authority that signed the certificate that this node shows";
        if stranger.log().contains(said) { Ok(()) } else { Err(stranger.log()) }
    });
    drop(stranger);
    let [cert, key] = &own;
    let shows = format!("{from}client_cert = {cert:?}\nclient_key = {key:?}\n");
    let region = Guarded::start(&world, &authority, "eu", &shows);
    arrives(&region, "one");

    // Both ends exchange what they have while a transfer is under way.
    let big: Vec<u8> =
        (0..SIZE / 4).flat_map(|n| n.wrapping_mul(0x9e37_79b1).to_le_bytes()).collect();
    let before = link.down();
    fs::write(hub.folder.join("dir/big.bin"), &big).unwrap();
    eventually("the transfer is under way", || match link.down() - before {
        500_000.. => Ok(()),
        other => Err(other.to_string()),
    });
    fs::copy(&later.cert, &ca).unwrap();
    for (new, old) in next.iter().zip(&own) {
        fs::rename(new, old).unwrap();
    }
    assert!(link.down() - before < u64::from(SIZE), "it was over before the exchange");
    eventually("the new CA is in force", || {
        if is_let_in(&hub, Some(&own)) { Ok(()) } else { Err(hub.log()) }
    });
    eventually("the file arrives", || match fs::read(region.folder.join("dir/big.bin")) {
        Ok(have) if have == big => Ok(()),
        other => Err(format!("{:?}\n{}", other.map(|have| have.len()), region.log())),
    });
    assert!(link.down() - before < u64::from(SIZE) * 5 / 4, "it began again");
    eventually("the region shows its new one", || {
        if region.log().contains("in force") { Ok(()) } else { Err(region.log()) }
    });
    link.cut();
    fs::write(hub.folder.join("dir/a.txt"), "two").unwrap();
    arrives(&region, "two");
}

/// The hash of a certificate's key, as openssl sees it.
fn pin_of(cert: &Path) -> String {
    let cert = cert.to_str().unwrap();
    let script = "openssl x509 -in \"$1\" -pubkey -noout | openssl pkey -pubin -outform der \
                  | openssl dgst -sha256 -binary | openssl base64";
    let out = Command::new("sh").args(["-c", script, "sh", cert]).stderr(Stdio::null()).output();
    format!("sha256/{}", String::from_utf8(out.unwrap().stdout).unwrap().trim())
}

#[test]
fn an_upstream_is_believed_for_its_key_alone_where_that_is_pinned() {
    let world = World::new();
    let (authority, foreign) = (Authority::new(&world, "ca"), Authority::new(&world, "foreign"));
    let folder = world.folder("hub");
    Authority::self_sign(&folder);
    let mut hub = Guarded::start_signed(&world, &authority, "hub", (0, "", PRIMARY));
    fs::write(hub.folder.join("dir/a.txt"), "one").unwrap();
    let admin = hub.admin(&["token", "list"]);
    assert!(!admin.status.success(), "no CA stands for it: {admin:?}");
    let (right, wrong) = (pin_of(&folder.join("node.crt")), pin_of(&foreign.cert));
    // Who makes the token there takes the certificate itself for a CA.
    hub.ca = folder.join("node.crt");
    let (_, token) = hub.token("eu", &["--role", "mirror", "--region", "edge-1"]);
    let pinned = |pin: &str| format!("{}pin = {pin:?}\n", mirror(&hub, &token));
    // Both show a certificate of the hub's CA, which is checked there; only the pin stands for the hub.
    let stranger = Guarded::start(&world, &authority, "wrong", &pinned(&wrong));
    eventually("the wrong key is refused, and both are named", || {
        let log = stranger.log();
        if log.contains(&right) && log.contains(&wrong) { Ok(()) } else { Err(log) }
    });
    assert_eq!(fs::read_dir(stranger.folder.join("dir")).unwrap().count(), 0);
    let region = Guarded::start(&world, &authority, "right", &pinned(&right));
    arrives(&region, "one");
}
