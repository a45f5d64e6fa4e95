//! Downloads from a node that follows a script: breaks off, changes versions, lies, redirects.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    thread,
};

use anyhow::Result;
use base64::{Engine, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};

use super::{
    client::{Client, Connection, block_on},
    download::{Done, Download},
};
use crate::model::ObjectId;

const OLD: &[u8] = b"the old version";
const NEW: &[u8] = b"and a newer one";

fn hex(content: &[u8]) -> String {
    ObjectId::from_bytes(Sha256::digest(content).into()).to_string()
}

/// An answer that promises `content`, announces `length` bytes and sends `body`.
fn answer(status: &str, content: &[u8], length: usize, body: &[u8]) -> Vec<u8> {
    let digest = BASE64_STANDARD.encode(Sha256::digest(content));
    let head = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\
         ETag: \"{}\"\r\nRepr-Digest: sha-256=:{digest}:\r\nX-Depsync-Commit: c\r\n\r\n",
        hex(content)
    );
    [head.as_bytes(), body].concat()
}

fn whole(content: &[u8]) -> Vec<u8> {
    answer("200 OK", content, content.len(), content)
}

/// Gives these answers to that many requests, one after another; then says what was asked.
fn node(answers: Vec<Vec<u8>>) -> (String, thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = thread::spawn(move || {
        let serve = |answer: Vec<u8>| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            stream.write_all(&answer).unwrap();
            String::from_utf8(request).unwrap().to_lowercase()
        };
        answers.into_iter().map(serve).collect()
    });
    (url, asked)
}

fn get(url: &str, state: &Path, to: &Path) -> Result<Done> {
    let token = state.join("admin.token");
    fs::write(&token, "secret").unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let client = Client::new(&Connection::with_state(url, state)).unwrap();
    let url = client.url("/v1/feeds/default/files/x").unwrap();
    block_on(Download { client: &client, urls: vec![url], to, commit: None }.run())
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap();
    names.map(|name| name.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_transfer_that_breaks_off_goes_on_from_there() {
    let (state, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (url, asked) = node(vec![
        answer("200 OK", OLD, OLD.len(), &OLD[..4]),
        answer("206 Partial Content", OLD, OLD.len() - 4, &OLD[4..9]),
        answer("206 Partial Content", OLD, OLD.len() - 9, &OLD[9..]),
    ]);
    let done = get(&url, state.path(), &folder.path().join("x")).unwrap();
    assert_eq!((done.bytes, done.resumed_at), (OLD.len() as u64, 9));
    assert_eq!(fs::read(folder.path().join("x")).unwrap(), OLD);
    let asked = asked.join().unwrap();
    assert!(!asked[0].contains("if-range:"), "{}", asked[0]);
    assert!(asked[2].contains("range: bytes=9-"), "{}", asked[2]);
    assert!(asked[2].contains(&format!("if-range: \"{}\"\r\n", hex(OLD))), "{}", asked[2]);
    assert_eq!(names(folder.path()), ["x"], "nothing partial is left");
}

#[test]
fn what_another_process_left_is_gone_on_with() {
    let (state, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(folder.path().join(format!(".depsync-tmp-{}", hex(OLD))), &OLD[..6]).unwrap();
    let (url, asked) = node(vec![
        answer("200 OK", OLD, OLD.len(), b""),
        answer("206 Partial Content", OLD, OLD.len() - 6, &OLD[6..]),
    ]);
    let done = get(&url, state.path(), &folder.path().join("x")).unwrap();
    assert_eq!(done.resumed_at, 6);
    assert_eq!(fs::read(folder.path().join("x")).unwrap(), OLD);
    assert!(asked.join().unwrap()[0].starts_with("head "));
}

#[test]
fn what_another_process_left_whole_is_brought_again() {
    let (state, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(folder.path().join(format!(".depsync-tmp-{}", hex(OLD))), OLD).unwrap();
    let (url, asked) = node(vec![answer("200 OK", OLD, OLD.len(), b""), whole(OLD)]);
    get(&url, state.path(), &folder.path().join("x")).unwrap();
    assert_eq!(fs::read(folder.path().join("x")).unwrap(), OLD);
    let asked = asked.join().unwrap();
    assert!(asked[1].contains("range: bytes=0-"), "nothing lies beyond its end: {}", asked[1]);
}

#[test]
fn a_newer_version_is_brought_from_its_start() {
    let (state, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (url, _) = node(vec![answer("200 OK", OLD, OLD.len(), &OLD[..4]), whole(NEW)]);
    let done = get(&url, state.path(), &folder.path().join("x")).unwrap();
    assert_eq!((done.resumed_at, done.sha256.to_string()), (0, hex(NEW)));
    assert_eq!(fs::read(folder.path().join("x")).unwrap(), NEW);
    assert_eq!(names(folder.path()), ["x"], "the old version's part is gone");
}

#[test]
fn other_bytes_than_promised_never_reach_the_target() {
    let (state, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let target = folder.path().join("x");
    fs::write(&target, "what was there").unwrap();
    let (url, _) = node(vec![answer("200 OK", OLD, NEW.len(), NEW)]);
    let said = get(&url, state.path(), &target).err().unwrap().to_string();
    assert!(said.contains(&hex(NEW)) && said.contains(&hex(OLD)), "{said}");
    assert_eq!(fs::read(&target).unwrap(), b"what was there");
    assert_eq!(names(folder.path()), ["x"]);
}

#[test]
fn a_dead_node_is_given_up_and_the_part_is_kept() {
    let (state, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (url, _) = node(vec![answer("200 OK", OLD, OLD.len(), &OLD[..4])]);
    let said = get(&url, state.path(), &folder.path().join("x")).err().unwrap();
    assert!(format!("{said:#}").contains("the same command goes on from there"), "{said:#}");
    assert_eq!(names(folder.path()), [format!(".depsync-tmp-{}", hex(OLD))]);
}

#[test]
fn a_token_does_not_follow_to_another_node() {
    let (state, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (region, asked_region) = node(vec![whole(OLD)]);
    let redirect = format!(
        "HTTP/1.1 307 Temporary Redirect\r\nConnection: close\r\nContent-Length: 0\r\n\
         Location: {region}/v1/feeds/default/at/c/x\r\n\r\n"
    );
    let (primary, asked_primary) = node(vec![redirect.into_bytes()]);
    let done = get(&primary, state.path(), &folder.path().join("x")).unwrap();
    assert_eq!(done.from, region);
    assert!(asked_primary.join().unwrap()[0].contains("authorization: bearer secret"));
    let asked = &asked_region.join().unwrap()[0];
    assert!(asked.starts_with("get /v1/feeds/default/at/c/x "), "{asked}");
    assert!(!asked.contains("authorization"), "{asked}");
}
