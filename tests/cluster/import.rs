//! Coming from elsewhere: what `import` prints passes `check` and starts.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::{
    oracle::wait_equal,
    world::{DEPSYNC, Node, World},
};

/// A file as another system has it.
fn sample(name: &str) -> String {
    let samples = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/import");
    fs::read_to_string(samples.join(name)).unwrap()
}

/// `import`, on a machine where none of those systems is.
fn import(arguments: &[&str], variables: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(DEPSYNC);
    command.arg("import").args(arguments).stdin(Stdio::null());
    for name in ["CARBON_HOME", "EGO_CONFDIR", "carbon.home"] {
        command.env_remove(name);
    }
    command.envs(variables.iter().copied()).output().unwrap()
}

fn printed(arguments: &[&str], variables: &[(&str, &Path)]) -> String {
    let output = import(arguments, variables);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What is said to be missing; nothing is printed then.
fn missing(arguments: &[&str]) -> String {
    let output = import(arguments, &[]);
    assert_eq!(output.status.code(), Some(78), "{arguments:?}: {output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// A node with a printed file, which `check` finds good; started. The state, where the file says nothing
/// of it, lies in the world.
fn started(world: &World, name: &str, text: &str) -> Node {
    let mut node = world.configured(name, "", "");
    let config = world.path(&format!("{name}.toml"));
    fs::write(&config, text).unwrap();
    let checked = Command::new(DEPSYNC).args(["check", "--config"]).arg(&config).output().unwrap();
    assert!(checked.status.success(), "{checked:?}\n{text}");
    if !text.contains("\nstate_dir = ") {
        fs::write(&config, format!("state_dir = {:?}\n{text}", node.state)).unwrap();
    }
    node.start();
    node
}

/// A server's home with artifacts in both folders.
fn carbon_home(world: &World, name: &str) -> PathBuf {
    let home = world.folder(name);
    for folder in ["repository/conf", "repository/deployment/server", "repository/tenants"] {
        fs::create_dir_all(home.join(folder)).unwrap();
    }
    home
}

#[test]
fn two_carbon_servers() {
    let world = World::new();
    let homes = ["manager", "worker"].map(|name| carbon_home(&world, name));
    let files = homes.each_ref().map(|home| home.join("repository/conf/carbon.xml"));
    let shipped = sample("carbon.xml");
    fs::write(&files[0], shipped.replace("<AutoCommit>false", "<AutoCommit>true")).unwrap();
    fs::write(&files[1], &shipped).unwrap();
    let [manager, worker] = files.each_ref().map(|file| file.to_str().unwrap());

    // By its place, and by the variable, the home is the same.
    let text = printed(&["carbon", manager], &[]);
    assert_eq!(printed(&["carbon"], &[("CARBON_HOME", &homes[0])]), text);
    let hub = started(&world, "hub", &text);
    assert!(missing(&["carbon", worker]).contains("commits: name that with --upstream URL"));
    let text = printed(&["carbon", worker, "--upstream", &hub.url(), "--name", "eu"], &[]);
    let _region = started(&world, "eu", &text);

    let server = |home: &Path| home.join("repository/deployment/server");
    let tenants = |home: &Path| home.join("repository/tenants");
    fs::write(server(&homes[0]).join("shop.war.txt"), "shop").unwrap();
    fs::create_dir(tenants(&homes[0]).join("1")).unwrap();
    fs::write(tenants(&homes[0]).join("1/shop.txt"), "the tenant's").unwrap();
    wait_equal(&server(&homes[0]), &[&server(&homes[1])]);
    wait_equal(&tenants(&homes[0]), &[&tenants(&homes[1])]);
}

#[test]
fn a_repository_service_and_its_region() {
    let world = World::new();
    let conf = world.folder("ego/kernel/conf");
    let (table, profile) = ("ego/eservice/rs/conf", "ego/kernel/conf/eservice/esc/conf/services");
    world.folder(table);
    world.folder(profile);
    let regions = "<Regions><Region name=\"eu\"><IPRange>127.0.0.2</IPRange></Region></Regions>";
    fs::write(world.path(table).join("region.xml"), regions).unwrap();
    let rs = world.path(profile).join("rs.xml");
    let storage = world.path("storage");
    let text = sample("rs.xml").replace("@STORAGE@", storage.to_str().unwrap());
    fs::write(&rs, text).unwrap();

    let said = missing(&["ego", rs.to_str().unwrap()]);
    assert!(said.contains("it names no deployment directory: name it with --dir DIR"), "{said}");
    assert!(missing(&["ego"]).contains("set EGO_CONFDIR"));
    let dir = world.folder("hub-apps");
    let text = printed(&["ego", "--dir", dir.to_str().unwrap()], &[("EGO_CONFDIR", &conf)]);
    assert!(text.contains("RS_LOG_LEVEL is not used"), "{text}");
    let mut hub = world.configured("hub", "", "");
    hub.state = storage;
    let config = world.path("hub.toml");
    fs::write(&config, &text).unwrap();
    let checked = Command::new(DEPSYNC).args(["check", "--config"]).arg(&config).output().unwrap();
    assert!(checked.status.success(), "{checked:?}\n{text}");
    hub.start();
    assert_eq!(hub.get("/v1/regions")["regions"][0]["name"], "eu");

    // A table beside a file that was named belongs to it, whatever lies at home.
    let beside = world.folder("copied");
    fs::copy(&rs, beside.join("rs.xml")).unwrap();
    fs::write(beside.join("region.xml"), regions.replace("eu", "us")).unwrap();
    let copy = beside.join("rs.xml");
    let named = ["ego", copy.to_str().unwrap(), "--dir", dir.to_str().unwrap()];
    let text = printed(&named, &[("EGO_CONFDIR", &conf)]);
    let table = beside.join("region.xml").canonicalize().unwrap();
    assert!(text.contains(&format!("regions = {table:?}")), "{text}");

    // The same service's file, at a host that is to mirror it.
    let mirror = world.folder("mirror-apps");
    let given = ["--dir", mirror.to_str().unwrap(), "--upstream", &hub.url(), "--name", "eu"];
    let text = printed(&[&["ego", rs.to_str().unwrap()], &given[..]].concat(), &[]);
    let state = world.path("mirror.state");
    let text = text.replace(hub.state.to_str().unwrap(), state.to_str().unwrap());
    let _mirror = started(&world, "mirror", &text);
    fs::write(dir.join("package.zip.txt"), "a package").unwrap();
    wait_equal(&dir, &[&mirror]);
}

#[test]
fn the_rsync_recipe() {
    let world = World::new();
    let list = world.path("nodes-list.txt");
    let worker = world.folder("as-worker2/repository/deployment/server");
    let text = sample("nodes-list.txt");
    let text =
        text.replace("/opt/as-worker2/repository/deployment/server", worker.to_str().unwrap());
    fs::write(&list, text).unwrap();
    let list = list.to_str().unwrap();
    let manager = world.folder("as-manager/repository/deployment/server");

    assert!(missing(&["nodes-list", list]).contains("name the directory with --dir DIR"));
    let text = printed(&["nodes-list", list, "--dir", manager.to_str().unwrap()], &[]);
    assert!(text.contains("--name 192.168.30.1"), "{text}");
    let hub = started(&world, "hub", &text);
    let named = ["nodes-list", list, "--name", "192.168.30.2"];
    assert!(missing(&named).contains("name that with --upstream URL"));
    let text = printed(&[&named[..], &["--upstream", &hub.url()]].concat(), &[]);
    let _region = started(&world, "region", &text);
    fs::write(manager.join("shop.txt"), "shop").unwrap();
    wait_equal(&manager, &[&worker]);
}
