//! A NATS server of a test's own: on a port that the kernel chose, with its store in the test's folder.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use crate::world::{World, eventually, free_address};

pub struct NatsServer {
    port: u16,
    store: PathBuf,
    /// A name and a password, where it asks for them.
    who: Option<(String, String)>,
    child: Option<Child>,
}

impl NatsServer {
    /// A server that is not running yet.
    pub fn new(world: &World) -> Self {
        let port = free_address().port();
        NatsServer { port, store: world.path("nats"), who: None, child: None }
    }

    /// A server that runs.
    pub fn started(world: &World) -> Self {
        let mut server = Self::new(world);
        server.start();
        server
    }

    /// Lets in only who has this name and this password.
    pub fn guard(&mut self, name: &str, password: &str) {
        self.who = Some((name.to_owned(), password.to_owned()));
    }

    pub fn start(&mut self) {
        let port = self.port.to_string();
        let who = self.who.iter().flat_map(|(name, password)| ["--user", name, "--pass", password]);
        let child = Command::new("nats-server")
            .args(["-js", "-a", "127.0.0.1", "-p", &port, "-sd"])
            .arg(&self.store)
            .args(who)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server is there: tests/run.sh installs it");
        self.child = Some(child);
        eventually("the NATS server listens", || {
            std::net::TcpStream::connect(("127.0.0.1", self.port))
                .map_err(|error| error.to_string())
        });
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// It is gone, with all that it kept.
    pub fn lose(&mut self) {
        self.kill();
        fs::remove_dir_all(&self.store).unwrap();
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}
