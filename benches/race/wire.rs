//! Hosts as network namespaces on one bridge: the kernel counts what really crosses each link.
//!
//! Needs root and iproute2. Host 0 is the hub. All that is made here goes when the wire is dropped.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How long a process may take to end before it is killed.
const GRACE: Duration = Duration::from_secs(5);

pub(crate) struct Wire {
    tag: String,
    hosts: usize,
    running: Vec<Child>,
}

/// A process on a host, by its place among those started.
#[derive(Clone, Copy)]
pub(crate) struct Running(usize);

impl Wire {
    pub(crate) fn new(hosts: usize) -> Self {
        let wire = Wire { tag: format!("race{}", std::process::id()), hosts, running: Vec::new() };
        let bridge = wire.bridge();
        ip(&["netns", "add", &bridge]);
        ip(&["-n", &bridge, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &bridge, "link", "set", "br0", "up"]);
        for host in 0..hosts {
            let (ns, port) = (wire.namespace(host), format!("port{host}"));
            ip(&["netns", "add", &ns]);
            ip(&["-n", &ns, "link", "set", "lo", "up"]);
            let peer = ["type", "veth", "peer", "name", &port, "netns", &bridge];
            ip(&[&["-n", &ns, "link", "add", "eth0"][..], &peer].concat());
            ip(&["-n", &bridge, "link", "set", &port, "master", "br0", "up"]);
            let address = format!("{}/24", Wire::address(host));
            ip(&["-n", &ns, "addr", "add", &address, "dev", "eth0"]);
            ip(&["-n", &ns, "link", "set", "eth0", "up"]);
        }
        wire
    }

    fn bridge(&self) -> String {
        format!("{}-br", self.tag)
    }

    fn namespace(&self, host: usize) -> String {
        format!("{}-{host}", self.tag)
    }

    pub(crate) fn address(host: usize) -> String {
        assert!(host < 240, "one network of addresses");
        format!("10.77.0.{}", 10 + host)
    }

    /// Bytes that a host has sent so far.
    pub(crate) fn sent(&self, host: usize) -> u64 {
        let file = "/sys/class/net/eth0/statistics/tx_bytes";
        let output = Command::new("ip")
            .args(["netns", "exec", &self.namespace(host), "cat", file])
            .output()
            .expect("ip runs");
        String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number of bytes")
    }

    /// Starts a program on a host, what it says going to a file.
    pub(crate) fn spawn(&mut self, host: usize, log: &Path, words: &[&str]) -> Running {
        let log = File::options().create(true).append(true).open(log).expect("the log can be made");
        let child = Command::new("ip")
            .args(["netns", "exec", &self.namespace(host)])
            .args(words)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("ip runs");
        self.running.push(child);
        Running(self.running.len() - 1)
    }

    /// Ends a process and all that it started.
    pub(crate) fn stop(&mut self, process: Running) {
        end(std::slice::from_mut(&mut self.running[process.0]));
    }

    /// Processor seconds and peak memory in MB of a process and all below it.
    pub(crate) fn usage(&self, process: Running) -> (f64, f64) {
        let (mut todo, mut seconds, mut memory) = (vec![self.running[process.0].id()], 0.0, 0.0);
        while let Some(pid) = todo.pop() {
            todo.extend(children(pid));
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields: Vec<&str> =
                stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            let ticks = |at: usize| {
                fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or_default()
            };
            seconds += (11..15).map(ticks).sum::<f64>() / 100.0;
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kilobytes = peak.and_then(|text| text.split_whitespace().next()?.parse().ok());
            memory += kilobytes.unwrap_or(0.0) / 1024.0;
        }
        (seconds, memory)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        end(&mut self.running);
        (0..self.hosts).for_each(|host| remove(&self.namespace(host)));
        remove(&self.bridge());
    }
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| {
            text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()
        })
        .collect()
}

fn end(processes: &mut [Child]) {
    let signal = |name: &str, child: &Child| {
        let group = format!("-{}", child.id());
        Command::new("kill").args([name, "--", &group]).stderr(Stdio::null()).status().ok();
    };
    for child in processes.iter() {
        signal("-TERM", child);
    }
    let limit = Instant::now() + GRACE;
    for child in processes {
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < limit {
            std::thread::park_timeout(Duration::from_millis(10));
        }
        signal("-KILL", child);
        child.wait().ok();
    }
}

fn ip(words: &[&str]) {
    let status = Command::new("ip").args(words).status();
    assert!(status.is_ok_and(|status| status.success()), "ip {words:?}: is this root?");
}

fn remove(namespace: &str) {
    Command::new("ip").args(["netns", "del", namespace]).stderr(Stdio::null()).status().ok();
}
