//! Whatever a folder may hold: modes, times, names as bytes, attribute files, repositories, special
//! files; and what is left out on purpose.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    time::{Duration, SystemTime},
};

use crate::{
    oracle::{compare, contents, raw, wait_equal},
    origin::{may, run},
    world::{World, eventually},
};

#[test]
fn f4_modes_times_empty_folders_and_names_of_any_bytes_arrive_as_they_are() {
    let world = World::new();
    let keep = "metadata = ['mode', 'mtime', 'empty-dirs', 'owner', 'xattrs']";
    let mut hub = world.configured("hub", "", keep);
    let dir = hub.dir.clone();
    let at = |name: &str| dir.join(name);
    fs::create_dir_all(at("empty/within")).unwrap();
    for (name, mode) in [("private", 0o600), ("run", 0o755), ("odd", 0o4711), ("none", 0o000)] {
        fs::write(at(name), name).unwrap();
        fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
    }
    fs::set_permissions(at("empty"), Permissions::from_mode(0o2775)).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
    File::options().append(true).open(at("run")).unwrap().set_modified(time).unwrap();
    for name in ["with space", "quotes '\"", "line\nbreak", "-dash", "a\\b", &"n".repeat(255)] {
        fs::write(at(name), name).unwrap();
    }
    fs::write(hub.dir.join(raw(b"\xff\xfe not utf-8")), "x").unwrap();
    fs::create_dir(hub.dir.join(raw(b"dir \xff"))).unwrap();
    fs::write(hub.dir.join(raw(b"dir \xff/\x01")), "x").unwrap();
    run("chown", &["games:games", at("run").to_str().unwrap()]);
    rustix::fs::setxattr(at("run"), "user.note", b"kept", rustix::fs::XattrFlags::empty()).unwrap();
    hub.start();
    let eu = world.region("eu", &hub);
    wait_equal(&hub.dir, &[&eu.dir]);

    let (here, there) =
        (fs::metadata(at("run")).unwrap(), fs::metadata(eu.dir.join("run")).unwrap());
    assert_eq!((there.mtime(), there.mtime_nsec()), (1_234_567_890, 123_456_789));
    assert_eq!((here.uid(), here.gid()), (there.uid(), there.gid()));
    let mut value = [0; 16];
    let length = rustix::fs::getxattr(eu.dir.join("run"), "user.note", &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"kept");
    assert_eq!(fs::metadata(eu.dir.join("empty")).unwrap().mode() & 0o7777, 0o2775);

    // A change of mode or owner alone is a change.
    run("chown", &["root:root", at("run").to_str().unwrap()]);
    fs::set_permissions(at("private"), Permissions::from_mode(0o640)).unwrap();
    fs::remove_dir(at("empty/within")).unwrap();
    eventually("the metadata follow", || {
        compare(&hub.dir, &eu.dir)?;
        let owner = fs::metadata(eu.dir.join("run")).unwrap().uid();
        if owner == 0 { Ok(()) } else { Err(format!("owner {owner}")) }
    });
    hub.fsck();
}

#[test]
fn f5_names_that_differ_in_case_or_unicode_form_are_both_kept() {
    let world = World::new();
    let hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    for name in ["App.xml", "app.xml", "APP.XML", "caf\u{e9}", "cafe\u{301}", ".GIT-like", "Git"] {
        fs::write(hub.dir.join(name), name).unwrap();
    }
    wait_equal(&hub.dir, &[&eu.dir]);
    hub.sync();
    assert_eq!(contents(&eu.dir).len(), 7);
}

#[test]
fn f6_attribute_files_and_a_hostile_git_configuration_change_no_byte() {
    let world = World::new();
    let home = world.folder("home");
    let hostile = "[core]\nautocrlf = true\neol = crlf\nsafecrlf = true\nfsyncMethod = batch\n\
                   attributesFile = /dev/zero\nhooksPath = /nonexistent\nworktree = /\n\
                   [filter \"lfs\"]\nclean = false\nsmudge = false\nrequired = true\n\
                   [extensions]\nobjectFormat = sha256\n[include]\npath = /nonexistent\n";
    fs::write(home.join(".gitconfig"), hostile).unwrap();
    let env = |name: &str, value: &str| format!("{name}={value}");
    let home = home.to_str().unwrap();
    let words = vec![
        "env".to_owned(),
        env("HOME", home),
        env("XDG_CONFIG_HOME", home),
        env("GIT_CONFIG_GLOBAL", &format!("{home}/.gitconfig")),
        env("GIT_CONFIG_SYSTEM", &format!("{home}/.gitconfig")),
        env("GIT_DIR", "/nonexistent"),
        env("GIT_OBJECT_DIRECTORY", "/nonexistent"),
    ];
    let mut hub = world.primary_unstarted("hub", &[]);
    hub.wrap.clone_from(&words);
    hub.start();
    let mut eu = world.region_unstarted("eu", &hub.url(), &[]);
    eu.wrap = words;
    eu.start();
    let attributes =
        "* text=auto eol=crlf ident export-subst filter=lfs working-tree-encoding=UTF-16\n";
    fs::write(hub.dir.join(".gitattributes"), attributes).unwrap();
    fs::write(hub.dir.join(".gitignore"), "*\n").unwrap();
    fs::write(hub.dir.join(".gitmodules"), "[submodule \"x\"]\npath = x\nurl = y\n").unwrap();
    fs::write(hub.dir.join("text"), "unix\nmixed\r\n$Id$ $Format:%H$\r").unwrap();
    fs::write(hub.dir.join("large"), "line\r\nline\n$Id$\n".repeat(60_000)).unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    assert_eq!(hub.published("text").unwrap(), fs::read(hub.dir.join("text")).unwrap());
    assert_eq!(contents(&eu.dir).len(), 5);
    hub.fsck();
}

#[test]
fn f7_a_repository_inside_is_left_out_with_a_clear_state_and_a_pointer_arrives_as_it_is() {
    let world = World::new();
    let hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    let clone = hub.dir.join("clone");
    run("git", &["init", "-q", clone.to_str().unwrap()]);
    fs::write(clone.join("file"), "kept").unwrap();
    let pointer = format!(
        "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 12345\n",
        "ab".repeat(32)
    );
    fs::write(hub.dir.join("pointer"), &pointer).unwrap();
    eventually("both arrive", || {
        match (fs::read(eu.dir.join("clone/file")), fs::read_to_string(eu.dir.join("pointer"))) {
            (Ok(_), Ok(text)) if text == pointer => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    hub.sync();
    assert!(!eu.dir.join("clone/.git").exists());
    assert!(clone.join(".git/HEAD").exists(), "the operator's repository was touched");
    let detail = hub.feed_is("it is said", |feed| feed["detail"].as_str().map(str::to_owned));
    assert!(detail.contains("clone") && detail.contains("git"), "{detail}");
    assert!(hub.tell(&["status"]).contains("clone"));
}

#[test]
fn fifos_sockets_and_devices_are_never_opened_and_hard_links_are_files() {
    let world = World::new();
    let hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    run("mkfifo", &[hub.dir.join("pipe").to_str().unwrap()]);
    let device = hub.dir.join("device");
    let is_made = may("make a device", "mknod", &[device.to_str().unwrap(), "c", "1", "5"]);
    let _socket = std::os::unix::net::UnixListener::bind(hub.dir.join("socket")).unwrap();
    fs::write(hub.dir.join("one"), "linked").unwrap();
    fs::hard_link(hub.dir.join("one"), hub.dir.join("two")).unwrap();
    symlink("one", hub.dir.join("link")).unwrap();
    eventually("the files arrive", || match contents(&eu.dir).len() {
        3 => Ok(()),
        other => Err(other.to_string()),
    });
    hub.sync();
    assert_eq!(hub.head_files().len(), 3);
    assert_eq!(fs::read(eu.dir.join("two")).unwrap(), b"linked");
    let detail = hub.feed_is("it is said", |feed| feed["detail"].as_str().map(str::to_owned));
    let more = format!("{} more", 1 + usize::from(is_made));
    assert!(detail.contains("FIFO") && detail.contains(&more), "{detail}");
    fs::write(hub.dir.join("two"), "both change").unwrap();
    eventually("both change", || match fs::read(eu.dir.join("one")) {
        Ok(bytes) if bytes == b"both change" => Ok(()),
        other => {
            // Only one of the names has an event.
            hub.sync();
            Err(format!("{other:?}"))
        }
    });
}

#[test]
fn a_profile_and_an_ignore_file_leave_out_and_a_bad_pattern_names_its_line() {
    let world = World::new();
    let hub = world.primary_with("hub", &["--profile", "tomcat"]);
    fs::write(hub.dir.join(".depsyncignore"), "*.log\n/cache/\n").unwrap();
    hub.sync();
    fs::create_dir(hub.dir.join("cache")).unwrap();
    for name in ["a.log", "cache/x", "kept.txt", "shop.war.tmp", "x.part"] {
        fs::write(hub.dir.join(name), "x").unwrap();
    }
    fs::copy(crate::origin::JAR, hub.dir.join("shop.war")).unwrap();
    fs::create_dir_all(hub.dir.join("shop/WEB-INF")).unwrap();
    fs::write(hub.dir.join("shop/WEB-INF/web.xml"), "exploded by the server").unwrap();
    hub.sync();
    assert_eq!(hub.ever(), [".depsyncignore", "kept.txt", "shop.war"]);

    fs::write(hub.dir.join(".depsyncignore"), "*.log\n[z-a]\n").unwrap();
    fs::write(hub.dir.join("b.log"), "still not").unwrap();
    let why = hub.wait_held(".depsyncignore");
    assert!(why.contains("line 2"), "{why}");
    hub.sync();
    assert_eq!(hub.ever(), [".depsyncignore", "kept.txt", "shop.war"]);

    let unknown = crate::world::depsync(&["primary", "/tmp", "--profile", "jboss"]);
    assert_eq!(unknown.status.code(), Some(78));
    let said = String::from_utf8_lossy(&unknown.stderr);
    assert!(said.contains("jboss") && said.contains("tomcat"), "{said}");
}
