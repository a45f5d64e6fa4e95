//! What takes part: depsync, and what people use for the same work today, each as fast as it can be set.
//!
//! Host 0 is the hub with the source; each further host has one target.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::wire::{Running, Wire};

const DEPSYNC: &str = env!("CARGO_BIN_EXE_depsync");

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum System {
    Depsync,
    Lsyncd,
    Syncthing,
    GitScript,
}

/// Where everything of one race is.
pub(crate) struct Place {
    pub(crate) work: PathBuf,
    pub(crate) source: PathBuf,
    pub(crate) targets: Vec<PathBuf>,
}

/// The processes of a race that something is asked of.
pub(crate) struct Started {
    pub(crate) hub: Running,
    pub(crate) mirrors: Vec<Running>,
}

impl Place {
    fn file(&self, name: &str) -> PathBuf {
        self.work.join(name)
    }
}

impl System {
    pub(crate) fn name(self) -> &'static str {
        match self {
            System::Depsync => "depsync",
            System::Lsyncd => "lsyncd + rsync",
            System::Syncthing => "syncthing",
            System::GitScript => "inotifywait + git",
        }
    }

    /// Starts the hub and all mirrors.
    pub(crate) fn start(self, wire: &mut Wire, place: &Place) -> Started {
        match self {
            System::Depsync => {
                let hub = depsync_hub(wire, place);
                let hosts = 1..=place.targets.len();
                Started { hub, mirrors: hosts.map(|host| self.mirror(wire, place, host)).collect() }
            }
            System::Lsyncd => lsyncd(wire, place),
            System::Syncthing => syncthing(wire, place),
            System::GitScript => git_script(wire, place),
        }
    }

    /// Starts one mirror (again).
    pub(crate) fn mirror(self, wire: &mut Wire, place: &Place, host: usize) -> Running {
        let log = place.file(&format!("mirror{host}.log"));
        match self {
            System::Depsync => depsync_mirror(wire, place, host),
            System::Lsyncd => {
                let config = format!("--config={}", text(&place.file(&format!("rsyncd{host}"))));
                let address = format!("--address={}", Wire::address(host));
                wire.spawn(host, &log, &["rsync", "--daemon", "--no-detach", &config, &address])
            }
            System::Syncthing => {
                let home = format!("--home={}", text(&place.file(&format!("st{host}"))));
                let words = ["syncthing", "serve", &home, "--no-browser", "--no-restart"];
                let quiet = ["env", "STNOUPGRADE=1", "STNODEFAULTFOLDER=1"];
                wire.spawn(host, &log, &[&quiet[..], &words].concat())
            }
            System::GitScript => {
                wire.spawn(host, &log, &["python3", text(&place.file(&format!("rep{host}.py")))])
            }
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

fn write(path: &Path, content: String) {
    fs::write(path, content).expect("the file can be written");
}

fn sh(command: &str) -> String {
    let output = Command::new("bash").args(["-c", command]).output().expect("bash runs");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn depsync_hub(wire: &mut Wire, place: &Place) -> Running {
    let (state, listen) = (place.file("state0"), format!("{}:7873", Wire::address(0)));
    let words = [DEPSYNC, "primary", text(&place.source), "--state", text(&state)];
    let more = ["--listen", &listen, "--insecure"];
    wire.spawn(0, &place.file("hub.log"), &[&words[..], &more].concat())
}

fn depsync_mirror(wire: &mut Wire, place: &Place, host: usize) -> Running {
    let state = place.file(&format!("state{host}"));
    let listen = format!("{}:7873", Wire::address(host));
    let (upstream, own) = (format!("http://{}:7873", Wire::address(0)), format!("http://{listen}"));
    let name = format!("r{host}");
    let words = [DEPSYNC, "region", text(&place.targets[host - 1]), "--state", text(&state)];
    let more = ["--upstream", &upstream, "--name", &name, "--listen", &listen];
    let last = ["--advertise", &own, "--insecure"];
    let log = place.file(&format!("mirror{host}.log"));
    wire.spawn(host, &log, &[&words[..], &more, &last].concat())
}

/// Pushes by rsync to rsync daemons, with no delay of its own.
fn lsyncd(wire: &mut Wire, place: &Place) -> Started {
    let count = place.targets.len();
    let mut config =
        vec![format!("settings{{nodaemon=true, maxProcesses={}, insist=true}}\n", count.max(4))];
    let mut mirrors = Vec::new();
    for (host, target) in (1..).zip(&place.targets) {
        let module = format!(
            "use chroot = no\npid file = {}\n[d]\npath = {}\nread only = no\nmunge symlinks = no\n\
             uid = 0\ngid = 0\n",
            text(&place.file(&format!("rsyncd{host}.pid"))),
            text(target),
        );
        write(&place.file(&format!("rsyncd{host}")), module);
        mirrors.push(System::Lsyncd.mirror(wire, place, host));
        config.push(format!(
            "sync{{default.rsync, source=\"{}\", target=\"rsync://{}/d\", delay=0, delete=true, \
             rsync={{archive=true}}}}\n",
            text(&place.source),
            Wire::address(host),
        ));
    }
    // lsyncd gives up on a daemon that does not listen yet.
    std::thread::park_timeout(Duration::from_millis(500));
    let file = place.file("lsyncd.lua");
    write(&file, config.concat());
    Started { hub: wire.spawn(0, &place.file("hub.log"), &["lsyncd", text(&file)]), mirrors }
}

/// With the shortest delay of its watcher, no discovery, and direct addresses.
fn syncthing(wire: &mut Wire, place: &Place) -> Started {
    let hosts = place.targets.len() + 1;
    let homes: Vec<PathBuf> = (0..hosts).map(|host| place.file(&format!("st{host}"))).collect();
    let ids: Vec<String> = homes
        .iter()
        .map(|home| {
            sh(&format!("syncthing generate --home={} --no-default-folder", text(home)));
            let said = sh(&format!("syncthing --home={} --device-id", text(home)));
            said.lines().last().expect("a device id").to_owned()
        })
        .collect();
    for (host, home) in homes.iter().enumerate() {
        let peers: Vec<usize> = if host == 0 { (0..hosts).collect() } else { vec![0, host] };
        let shared: Vec<String> =
            peers.iter().map(|&peer| format!("<device id=\"{}\"/>", ids[peer])).collect();
        let devices: Vec<String> = peers
            .iter()
            .map(|&peer| {
                format!(
                    "<device id=\"{}\" name=\"{peer}\" compression=\"never\">\
                     <address>tcp://{}:22000</address></device>",
                    ids[peer],
                    Wire::address(peer)
                )
            })
            .collect();
        let (kind, path) = match host {
            0 => ("sendonly", &place.source),
            host => ("receiveonly", &place.targets[host - 1]),
        };
        write(
            &home.join("config.xml"),
            format!(
                "<configuration version=\"35\"><folder id=\"d\" label=\"d\" path=\"{}\" type=\"{kind}\" \
                 rescanIntervalS=\"3600\" fsWatcherEnabled=\"true\" fsWatcherDelayS=\"1\" \
                 autoNormalize=\"true\">{}</folder>{}<gui enabled=\"true\">\
                 <address>127.0.0.1:8384</address></gui><options>\
                 <listenAddress>tcp://{}:22000</listenAddress>\
                 <globalAnnounceEnabled>false</globalAnnounceEnabled>\
                 <localAnnounceEnabled>false</localAnnounceEnabled>\
                 <relaysEnabled>false</relaysEnabled><natEnabled>false</natEnabled>\
                 <urAccepted>-1</urAccepted><crashReportingEnabled>false</crashReportingEnabled>\
                 <autoUpgradeIntervalH>0</autoUpgradeIntervalH><setLowPriority>false</setLowPriority>\
                 <reconnectionIntervalS>1</reconnectionIntervalS></options></configuration>",
                text(path),
                shared.concat(),
                devices.concat(),
                Wire::address(host)
            ),
        );
    }
    let mut started = (0..hosts).map(|host| System::Syncthing.mirror(wire, place, host));
    let hub = started.next().expect("a hub");
    Started { hub, mirrors: started.collect() }
}

/// What many write themselves: commit at each event, tell each mirror, which fetches and resets.
fn git_script(wire: &mut Wire, place: &Place) -> Started {
    let hub = place.file("hub.git");
    let (hub, source, work) = (text(&hub), text(&place.source), text(&place.work));
    sh(&format!(
        "git init -q --bare {hub} && git -C {hub} config core.bare false && \
         git -C {hub} config user.email race@localhost && git -C {hub} config user.name race && \
         touch {hub}/git-daemon-export-ok"
    ));
    let addresses: Vec<String> = (1..=place.targets.len()).map(Wire::address).collect();
    let script = place.file("hub.sh");
    write(
        &script,
        format!(
            "cd {source}; export GIT_DIR={hub} GIT_WORK_TREE={source}\n\
             commit() {{ git add -A && git commit -qm sync && for a in {}; do \
             (echo x > /dev/tcp/$a/7777) 2>/dev/null & done; wait; }}\ncommit\n\
             inotifywait -qmr -e close_write,move,delete,create --format x {source} | \
             while read -r l; do while read -r -t 0.02 l; do :; done; commit; done\n",
            addresses.join(" ")
        ),
    );
    let listen = format!("--listen={}", Wire::address(0));
    let base = format!("--base-path={work}");
    let log = place.file("hub.log");
    wire.spawn(0, &log, &["git", "daemon", &base, "--export-all", "--reuseaddr", &listen, work]);
    let mirrors = (1..)
        .zip(&place.targets)
        .map(|(host, target)| {
            let repository = place.file(&format!("rep{host}.git"));
            write(
                &place.file(&format!("rep{host}.py")),
                format!(
                    "import socket, subprocess\n\
                     s = socket.create_server((\"{own}\", 7777), reuse_port=True)\n\
                     sh = lambda c: subprocess.run(c, shell=True)\n\
                     sh(\"git init -q --bare {g}; git -C {g} config core.bare false\")\n\
                     while True:\n \
                     sh(\"git --git-dir={g} fetch -q git://{hub}/hub.git +HEAD:refs/race/head && \
                     git --git-dir={g} --work-tree={target} reset -q --hard refs/race/head\")\n \
                     s.accept()[0].close()\n",
                    own = Wire::address(host),
                    hub = Wire::address(0),
                    g = text(&repository),
                    target = text(target),
                ),
            );
            System::GitScript.mirror(wire, place, host)
        })
        .collect();
    std::thread::park_timeout(Duration::from_millis(500));
    Started { hub: wire.spawn(0, &log, &["bash", text(&script)]), mirrors }
}
