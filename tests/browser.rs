//! The console in a real browser, over real nodes: what an operator does with it, by mouse and by
//! keyboard, in light and in dark.
//!
//! With `DEPSYNC_SCREENSHOTS=docs/screenshots` the tour through all views writes a picture of each.
#![expect(
    clippy::pedantic,
    clippy::disallowed_methods,
    clippy::panic,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "scenarios, read as stories"
)]

#[path = "browser/driver.rs"]
mod driver;
#[path = "cluster/world.rs"]
#[expect(dead_code, reason = "shared with the scenarios of the cluster")]
mod world;

use std::{fs, path::Path, process::Command};

use driver::Browser;
use serde_json::Value;
use world::{Node, World, done, eventually};

fn admin(node: &Node) -> String {
    fs::read_to_string(node.state.join("admin.token")).unwrap().trim().to_owned()
}

fn seq(node: &Node) -> u64 {
    world::feed(node)["seq"].as_u64().unwrap_or(0)
}

/// Writes files and waits until they are published as one version or several.
fn publish(node: &Node, files: &[(&str, &str)]) {
    let before = seq(node);
    for (path, content) in files {
        let path = node.dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    eventually("it is published", || match seq(node) > before {
        true => Ok(()),
        false => Err(world::feed(node).to_string()),
    });
    done(node, &["sync"]);
}

/// How many files lie in a folder; none where there is no folder.
fn count(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}

/// Pages of a site.
fn pages(node: &Node, count: usize) {
    let names: Vec<String> = (0..count).map(|n| format!("pages/page-{n:02}.html")).collect();
    let files: Vec<(&str, &str)> =
        names.iter().map(|name| (name.as_str(), "<p>hello</p>\n")).collect();
    publish(node, &files);
}

#[test]
fn a_region_goes_stale_and_comes_back() {
    let world = World::new();
    let hub = world.primary("hub");
    publish(&hub, &[("a.txt", "one")]);
    let mut eu = world.region("eu", &hub);
    let browser = Browser::open(&hub.url());
    browser.see("Sign in");
    assert!(!browser.text().contains("Regions and nodes"), "nothing is shown before that");
    browser.sign_in("depsync_wrong");
    browser.see("not known here");
    browser.sign_in(&admin(&hub));
    let state = |wanted: &str| {
        eventually(&format!("eu is {wanted}"), || {
            let row = browser.text_of("tr[data-region=eu]");
            if row.contains(wanted) { Ok(row) } else { Err(row) }
        })
    };
    assert!(state("up to date").contains("#1"), "want and have are shown");
    browser.see("All is well");

    // A new version is seen to arrive, without anybody asking for the page again.
    publish(&hub, &[("a.txt", "two")]);
    eventually("the row says so", || {
        let row = state("up to date");
        if row.matches("#2").count() == 2 { Ok(()) } else { Err(row) }
    });

    eu.kill();
    state("stale");
    browser.see(" problem");
    browser.click("Problems");
    let card = browser.text_of("li[data-kind=region_stale]");
    assert!(card.contains("stale: eu: away for") && card.contains("began"), "{card}");
    assert!(card.contains("depsync forget"), "it says what to do: {card}");
    browser.click("Overview");
    eu.start();
    state("up to date");
    browser.see("All is well");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn a_held_deletion_is_approved_and_an_older_version_brought_back() {
    let world = World::new();
    let hub = world.primary("hub");
    pages(&hub, 60);
    let browser = Browser::open(&hub.url());
    browser.sign_in(&admin(&hub));
    browser.click("Feeds");
    browser.see("History");
    // The first ones may have gone before so many make a batch stay open: then the rest is held.
    let whole = seq(&hub);
    fs::remove_dir_all(hub.dir.join("pages")).unwrap();
    browser.see("deletions wait for a decision");
    browser.see("pages/page-");

    // Rejected: the files are back. Removed again and approved: they are gone everywhere.
    browser.click("Reject: put them back");
    browser.click("Put them back");
    eventually("the files are back", || match count(&hub.dir.join("pages")) {
        60 => Ok(()),
        other => Err(other.to_string()),
    });
    browser.miss("deletions wait");
    fs::remove_dir_all(hub.dir.join("pages")).unwrap();
    browser.click("Approve the deletion");
    browser.see("files everywhere?");
    browser.click("Remove them");
    browser.see("The deletion is published.");
    browser.miss("deletions wait");
    let gone = seq(&hub);
    assert!(gone > whole && !hub.dir.join("pages").exists());

    // What changed in it, who and when; then the version before it comes back.
    eventually("the new version is listed", || {
        let open = "const it = document.querySelector(`li[data-seq='${arguments[0]}'] summary`); it?.click(); return !!it";
        if browser.js(open, vec![gone.into()]).as_bool() == Some(true) {
            Ok(())
        } else {
            Err(browser.text())
        }
    });
    let entry = format!("li[data-seq='{gone}']");
    eventually("its changes are shown", || {
        let text = browser.text_of(&entry);
        let parts = ["deleted", "pages/page-", " ago · "];
        if parts.iter().all(|part| text.contains(part)) { Ok(()) } else { Err(text) }
    });
    browser.click(&format!("Roll back to version {whole}"));
    browser.see(&format!("Roll back to #{whole}?"));
    browser.click("Roll back");
    browser.see("is back at the state of");
    assert_eq!(count(&hub.dir.join("pages")), 60);
    eventually("a new version has the old content", || match seq(&hub) {
        now if now == gone + 1 => Ok(()),
        now => Err(now.to_string()),
    });

    // Every act is a run; each commit has the names of what it moved.
    browser.click("Runs");
    browser.see("rollback");
    browser.js(
        "document.querySelectorAll('li[data-kind=commit] summary').forEach((it) => it.click())",
        vec![],
    );
    browser.see("pages/page-");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn limits_are_changed_files_browsed_and_a_region_added() {
    let world = World::new();
    let hub = world.primary("hub");
    let attack = "<img src=x onerror=\"document.title='broken into'\">.html";
    publish(&hub, &[("conf/app.properties", "a=1"), (attack, "<script>1</script>")]);
    publish(&hub, &[("conf/app.properties", "a=22222")]);
    let browser = Browser::open(&hub.url());
    browser.sign_in(&admin(&hub));

    browser.click("Rates");
    browser.see("To clients");
    browser.fill("Everything", "200MB/s");
    browser.fill("Each client", "nonsense");
    browser.click("Set the limits");
    browser.see("\"nonsense\" is not a rate");
    assert!(hub.get("/v1/bandwidth")["limits"]["total"].is_null(), "a wrong part changes nothing");
    browser.fill("Each client", "10MB/s");
    browser.click("Set the limits");
    browser.see("The limits are in force.");
    let limits = hub.get("/v1/bandwidth");
    assert_eq!(
        (&limits["in_force"]["total"], &limits["in_force"]["per_client"]),
        (&"200MB/s".into(), &"10MB/s".into())
    );
    browser.see("total limit: 200MB/s");

    // Any version of any file, by its name whatever that is.
    browser.click("Feeds");
    browser.click("Browse files");
    browser.see(attack);
    browser.click("conf/");
    browser.see("app.properties");
    browser.see("7 B");
    browser.js(
        "const it = document.getElementById('version'); it.selectedIndex = it.options.length - 1; \
         it.dispatchEvent(new Event('change'))",
        vec![],
    );
    browser.see("3 B");
    let title = browser.js("return document.title", vec![]);
    assert!(title.as_str().unwrap().starts_with("Files of default"), "{title}");
    assert_eq!(
        browser.js("return document.querySelectorAll('main img').length", vec![]),
        Value::from(0)
    );

    // The command that it shows makes a region, as it stands.
    browser.click("Overview");
    browser.click("Add a region");
    browser.fill("Region", "eu-west");
    browser.fill("Folder there", world.path("eu").to_str().unwrap());
    browser.fill("Its address", "127.0.0.1:0");
    browser.click("Make the token");
    browser.see("The token is in it and is shown only now");
    let command = browser.js("return document.getElementById('command').value", vec![]);
    browser.click("Done");
    fs::create_dir_all(world.path("eu")).unwrap();
    let binary = Path::new(world::DEPSYNC).parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    let script = format!(
        "exec 2>&1; {} --state {}",
        command.as_str().unwrap().replace("&& depsync", "&& exec depsync"),
        world.path("eu.state").display()
    );
    let mut region = Command::new("sh")
        .args(["-c", &script])
        .current_dir(world.folder("there"))
        .env("PATH", path)
        .stdout(fs::File::create(world.path("eu.log")).unwrap())
        .spawn()
        .unwrap();
    browser.see("eu-west");
    eventually("it is up to date", || {
        let row = browser.text_of("tr[data-region=eu-west]");
        if row.contains("up to date") { Ok(()) } else { Err(row) }
    });
    assert_eq!(fs::read_to_string(world.path("eu/conf/app.properties")).unwrap(), "a=22222");
    region.kill().unwrap();
    region.wait().unwrap();
    assert_eq!(browser.complaints(), [""; 0]);
}

const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";
const ESCAPE: &str = "\u{e00c}";

/// Goes on with the Tab key until something has the focus.
fn tab_to(browser: &Browser, name: &str) {
    let mut seen = Vec::new();
    for _ in 0..40 {
        if browser.focus() == name {
            return;
        }
        browser.keys(TAB);
        seen.push(browser.focus());
    }
    panic!("{name:?} is not reached by the keyboard: {seen:?}");
}

#[test]
fn the_keyboard_is_enough_and_a_reader_cannot_act() {
    let world = World::new();
    let hub = world.primary("hub");
    publish(&hub, &[("a.txt", "one")]);
    publish(&hub, &[("a.txt", "two")]);
    let browser = Browser::open(&hub.url());
    browser.see("Sign in");
    tab_to(&browser, "Token");
    browser.keys(&admin(&hub));
    browser.keys(ENTER);
    browser.see("All is well");
    browser.js("document.activeElement.blur()", vec![]);
    tab_to(&browser, "Skip to the content");
    tab_to(&browser, "Feeds");
    browser.keys(ENTER);
    browser.see("History");
    eventually("the new view's title has the focus", || match browser.focus().as_str() {
        "Feed default" => Ok(()),
        other => Err(other.to_owned()),
    });

    // A dialog takes the focus, keeps it, and gives it back.
    tab_to(&browser, "Pause all");
    browser.keys(ENTER);
    browser.see("Pause default?");
    browser.keys(ESCAPE);
    browser.miss("Pause default?");
    assert_eq!(browser.focus(), "Pause all");
    tab_to(&browser, "Roll back to version 1");
    browser.keys(ENTER);
    browser.see("Roll back to #1?");
    tab_to(&browser, "Roll back");
    browser.keys(ENTER);
    browser.see("is back at the state of");
    assert_eq!(fs::read_to_string(hub.dir.join("a.txt")).unwrap(), "one");

    // What a person has the focus on stays, whatever is drawn anew.
    tab_to(&browser, "Sync now");
    publish_frozen(&hub);
    browser.see("later.txt");
    assert_eq!(browser.focus(), "Sync now");

    let made = done(&hub, &["token", "create", "--role", "reader"]);
    let reader = made.split_whitespace().find(|word| word.starts_with("depsync_")).unwrap();
    browser.click("Sign out");
    browser.sign_in(reader);
    browser.see("History");
    let enabled =
        "return [...document.querySelectorAll('main button:enabled')].map((it) => it.innerText)";
    assert_eq!(browser.js(enabled, vec![]), Value::Array(vec![]), "a reader's buttons do nothing");
    assert_eq!(browser.complaints(), [""; 0]);
}

/// After a rollback the feed is frozen: a change is held, which the console shows.
fn publish_frozen(hub: &Node) {
    fs::write(hub.dir.join("later.txt"), "later").unwrap();
    eventually("it is held", || match world::feed(hub)["held_count"].as_u64() {
        Some(1..) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// Where pictures go; none: nobody asked for any.
fn picture(browser: &Browser, name: &str) {
    let Ok(folder) = std::env::var("DEPSYNC_SCREENSHOTS") else { return };
    fs::create_dir_all(&folder).unwrap();
    fs::write(Path::new(&folder).join(format!("{name}.png")), browser.screenshot()).unwrap();
}

#[test]
fn every_view_is_sound_in_light_in_dark_and_on_a_narrow_window() {
    let world = World::new();
    fs::write(
        world.path("region.xml"),
        "<Regions><Region name=\"eu-west\"><IPRange>10.20.0.0/16</IPRange></Region></Regions>",
    )
    .unwrap();
    let regions = world.path("region.xml");
    let hub =
        world.primary_with("hub-1", &["--node", "hub-1", "--regions", regions.to_str().unwrap()]);
    publish(&hub, &[("conf/app.properties", "a=1")]);
    let _eu = world.region("eu-west", &hub);
    let _us = world.region("us-east", &hub);
    eventually("both are there", || match hub.get("/v1/nodes")["nodes"].as_array().map(Vec::len) {
        Some(2) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    pages(&hub, 64);
    fs::write(hub.dir.join("shop.war.part"), "x").unwrap();
    publish(&hub, &[("static/style.css", "body { margin: 0 }")]);
    let browser = Browser::open(&hub.url());
    let audit = |view: &str, scheme: &str| {
        // Colours take a moment to change.
        eventually(&format!("{view} in {scheme} is sound"), || {
            let wrong = browser.js(include_str!("browser/audit.js"), vec![]);
            if wrong == Value::Array(vec![]) { Ok(()) } else { Err(wrong.to_string()) }
        });
    };
    browser.see("Sign in");
    audit("sign in", "light");
    picture(&browser, "sign-in");
    browser.sign_in(&admin(&hub));
    browser.see("All is well");
    picture(&browser, "overview");
    // Not the folder as a whole: that is an application which is undeployed.
    for page in 1..64 {
        fs::remove_file(hub.dir.join(format!("pages/page-{page:02}.html"))).unwrap();
    }
    browser.see("deletions wait for approve or reject");
    let commit = hub.commit();
    let files = format!("#/feeds/default/files/{commit}/");
    let views = [
        ("problems", "#/problems", "Look at the list"),
        ("feed", "#/feeds", "deletions wait for a decision"),
        ("files", &files, "static/"),
        ("runs", "#/runs", "commit"),
        ("rates", "#/rates", "Set the limits"),
        ("propagation", "#/times", "Last arrivals"),
        ("overview", "#/", "Regions and nodes"),
    ];
    for scheme in ["light", "dark"] {
        browser.scheme(scheme);
        for (name, at, shown) in views {
            browser.js("location.hash = arguments[0]", vec![at.into()]);
            browser.see(shown);
            audit(name, scheme);
            if scheme == "dark" || name != "overview" {
                picture(
                    &browser,
                    &if scheme == "dark" { format!("{name}-dark") } else { name.to_owned() },
                );
            }
        }
        let ground =
            browser.js("return getComputedStyle(document.documentElement).backgroundColor", vec![]);
        assert_eq!(ground == "rgb(18, 22, 28)", scheme == "dark", "{ground}");
    }
    browser.click("Add a region");
    browser.see("Make the token");
    audit("add a region", "dark");
    picture(&browser, "add-a-region-dark");
    browser.click("Cancel");
    browser.scheme("light");
    browser.size(390, 844);
    for (name, at, _) in views {
        browser.js("location.hash = arguments[0]", vec![at.into()]);
        browser.see(if name == "files" { "static/" } else { "Overview" });
        audit(name, "a narrow window");
        if ["overview", "feed"].contains(&name) {
            picture(&browser, &format!("{name}-narrow"));
        }
    }
    assert_eq!(browser.complaints(), [""; 0]);
}
