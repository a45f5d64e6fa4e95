//! The systemd unit as systemd itself reads it: it is sound, and it gives the daemon few rights.

use std::{fs, path::Path, process::Command};

use crate::world::{DEPSYNC, World};

/// In tenths, from 0 (shut in) to 100 (free), by systemd's own reckoning; services without a sandbox
/// have some 90.
const MOST_EXPOSED: u32 = 25;

fn analyze(arguments: &[&str], unit: &Path) -> String {
    let ran = Command::new("systemd-analyze").args(arguments).arg(unit).output().unwrap();
    let said = String::from_utf8_lossy(&[&ran.stdout[..], &ran.stderr].concat()).into_owned();
    assert!(ran.status.success(), "{arguments:?}: {said}");
    said
}

#[test]
fn the_unit_is_sound_and_shut_in() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/depsync.service");
    let text = fs::read_to_string(&unit).unwrap();
    let world = World::new();
    // The program is not installed here.
    let here = world.path("depsync.service");
    fs::write(&here, text.replace("/usr/bin/depsync", DEPSYNC)).unwrap();
    let said = analyze(&["verify", "--man=no", "--recursive-errors=no"], &here);
    assert!(!said.contains("depsync.service"), "{said}");
    let threshold = format!("--threshold={MOST_EXPOSED}");
    let said = analyze(&["security", "--offline=true", "--no-pager", &threshold], &here);
    assert!(said.contains("Overall exposure level"), "{said}");

    // One capability, and no more without the operator's own act.
    let lines = |key: &str| -> Vec<&str> {
        text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
    };
    assert_eq!(lines("CapabilityBoundingSet"), ["CAP_LEASE"]);
    assert_eq!(lines("AmbientCapabilities"), ["CAP_LEASE"]);
    assert_eq!((lines("ProtectSystem"), lines("NoNewPrivileges")), (vec!["strict"], vec!["yes"]));
    assert_eq!(lines("StateDirectoryMode"), ["0700"]);
}
