//! Nodes that other machines could reach: TLS with certificates made here, and tokens.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::world::{DEPSYNC, World, curl, depsync, eventually, wait_until_up};

/// A CA of its own, and what it has signed.
pub struct Authority {
    pub issuer: Issuer<'static, KeyPair>,
    pub cert: PathBuf,
}

impl Authority {
    pub fn new(world: &World, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let cert = world.path(&format!("{name}.crt"));
        fs::write(&cert, params.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: Issuer::new(params, key), cert }
    }

    /// Replaces the certificate and key of a node, as an operator would.
    pub fn sign(&self, folder: &Path) {
        let (key, params) = (KeyPair::generate().unwrap(), of_a_node());
        lay(folder, &params.signed_by(&key, &self.issuer).unwrap().pem(), &key);
    }

    /// The same without any CA.
    pub fn self_sign(folder: &Path) {
        let (key, params) = (KeyPair::generate().unwrap(), of_a_node());
        lay(folder, &params.self_signed(&key).unwrap().pem(), &key);
    }
}

fn of_a_node() -> CertificateParams {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, "a node");
    params
}

fn lay(folder: &Path, cert: &str, key: &KeyPair) {
    fs::write(folder.join("node.crt"), cert).unwrap();
    secret(&folder.join("node.key"), &key.serialize_pem());
}

pub fn secret(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A daemon that other machines could reach: it has TLS and asks for tokens.
pub struct Guarded {
    pub folder: PathBuf,
    pub ca: PathBuf,
    pub port: u16,
    /// A certificate and its key that commands show.
    pub shown: Option<[PathBuf; 2]>,
    child: Child,
}

impl Guarded {
    /// Starts `run` in a new folder; `config` is what stands behind `listen`, `state_dir` and `[tls]`.
    pub fn start(world: &World, authority: &Authority, name: &str, config: &str) -> Self {
        Self::start_with(world, authority, name, (0, "", config))
    }

    /// The same on a port, with further keys of the node.
    pub fn start_with(
        world: &World,
        authority: &Authority,
        name: &str,
        (port, keys, config): (u16, &str, &str),
    ) -> Self {
        authority.sign(&world.folder(name));
        Self::start_signed(world, authority, name, (port, keys, config))
    }

    /// The same with the certificate that lies there.
    pub fn start_signed(
        world: &World,
        authority: &Authority,
        name: &str,
        (port, keys, config): (u16, &str, &str),
    ) -> Self {
        let folder = world.folder(name);
        fs::create_dir_all(folder.join("dir")).unwrap();
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
        let mut node = Self { folder, ca, port: 0, shown: None, child };
        node.port = eventually("it listens", || {
            let text = fs::read_to_string(node.folder.join("state/address")).unwrap_or_default();
            let port = text.trim().rsplit(':').next().and_then(|port| port.parse().ok());
            port.ok_or_else(|| node.log())
        });
        wait_until_up(&node.url());
        node
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// A talking command as the admin of that machine.
    pub fn admin(&self, arguments: &[&str]) -> Output {
        let (url, state) = (self.url(), self.folder.join("state"));
        let ca = self.ca.to_str().unwrap();
        let more = ["--url", &url, "--state", state.to_str().unwrap(), "--ca", ca];
        depsync(&[arguments, &more, &self.showing()].concat())
    }

    /// The options, the same for `curl` and for us, that show the certificate.
    fn showing(&self) -> Vec<&str> {
        let Some([cert, key]) = &self.shown else { return Vec::new() };
        vec!["--cert", cert.to_str().unwrap(), "--key", key.to_str().unwrap()]
    }

    /// Makes a token: its id, and the file in which it lies.
    pub fn token(&self, name: &str, arguments: &[&str]) -> (String, PathBuf) {
        let made = self.admin(&[&["token", "create", "--json"], arguments].concat());
        assert!(made.status.success(), "{made:?}");
        let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
        let file = self.folder.join(name);
        secret(&file, made["token"].as_str().unwrap());
        (made["id"].as_str().unwrap().to_owned(), file)
    }

    /// What is answered to a reader.
    pub fn body(&self, token: &Path, path: &str) -> String {
        let header = format!("Authorization: Bearer {}", fs::read_to_string(token).unwrap().trim());
        let (ca, url) = (self.ca.to_str().unwrap(), format!("{}{path}", self.url()));
        String::from_utf8(curl(&["--cacert", ca, "-H", &header, &url]).stdout).unwrap()
    }

    /// The head of the answer to a reader.
    pub fn answer(&self, token: &Path, path: &str) -> String {
        let header = format!("Authorization: Bearer {}", fs::read_to_string(token).unwrap().trim());
        let (ca, url) = (self.ca.to_str().unwrap(), format!("{}{path}", self.url()));
        let answer = curl(&["--cacert", ca, "-D", "-", "-o", "/dev/null", "-H", &header, &url]);
        String::from_utf8(answer.stdout).unwrap().to_lowercase()
    }

    /// The status of a request with a token or none.
    pub fn status(&self, token: Option<&Path>, arguments: &[&str], path: &str) -> String {
        let url = format!("{}{path}", self.url());
        let header = token.map(|file| {
            format!("Authorization: Bearer {}", fs::read_to_string(file).unwrap().trim())
        });
        let ca = self.ca.to_str().unwrap();
        let mut all = vec!["--cacert", ca, "-o", "/dev/null", "-w", "%{http_code}"];
        if let Some(header) = &header {
            all.extend(["-H", header]);
        }
        all.extend(self.showing());
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

pub const PRIMARY: &str = "[[feed]]\nname = \"apps\"\ndir = \"dir\"\n";

pub fn mirror(upstream: &Guarded, token: &Path) -> String {
    format!(
        "[region]\nname = \"edge-1\"\n[[feed]]\nname = \"apps\"\nupstream = \"{}\"\n\
         token_file = \"{}\"\ndir = \"dir\"\n",
        upstream.url(),
        token.display()
    )
}

pub fn arrives(region: &Guarded, text: &str) {
    let path = region.folder.join("dir/a.txt");
    eventually("the file arrives", || match fs::read_to_string(&path) {
        Ok(have) if have == text => Ok(()),
        other => Err(format!("{other:?}\n{}", region.log())),
    });
}
