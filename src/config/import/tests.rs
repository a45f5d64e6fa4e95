//! What each file comes to, and what is said when something is missing.

use super::*;
use crate::config::{Consent, Role, Settings, convert, file};

const CARBON: &str = include_str!("../../../tests/data/import/carbon.xml");
const NODES: &str = include_str!("../../../tests/data/import/nodes-list.txt");

fn given(dir: &str, upstream: &str) -> Given {
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    Given {
        dir: some(dir).map(PathBuf::from),
        upstream: some(upstream).map(|url| url.parse().unwrap()),
        name: None,
    }
}

/// A host called `node 1`, where `CARBON_HOME` is /opt/wso2 and tenants have their folder.
fn around<T>(then: impl FnOnce(&Around<'_>) -> T) -> T {
    let variable = |name: &str| Some("/opt/wso2".to_owned()).filter(|_| name == "carbon.home");
    let is_dir = |path: &Path| path == Path::new("/opt/wso2/repository/tenants");
    then(&Around { host: "node 1", variable: &variable, is_dir: &is_dir })
}

fn settings(text: &str) -> Settings {
    let read = file::read(text).unwrap();
    convert::settings(read.file, &read.unread, Consent::default()).unwrap()
}

fn from_carbon(text: &str, given: &Given) -> Result<String, String> {
    around(|around| carbon(text, Path::new("carbon.xml"), given, around))
        .map_err(|error| error.to_string())
}

#[test]
fn a_server_that_checks_out_becomes_a_region_of_both_folders() {
    let text = from_carbon(CARBON, &given("", "http://hub:7873")).unwrap();
    let settings = settings(&text);
    assert_eq!(settings.region.unwrap().as_str(), "node-1");
    let feeds: Vec<_> =
        settings.feeds.iter().map(|feed| (feed.name.as_str(), feed.dir())).collect();
    let expected = [
        ("server", Some(Path::new("/opt/wso2/repository/deployment/server"))),
        ("tenants", Some(Path::new("/opt/wso2/repository/tenants"))),
    ];
    assert_eq!(feeds, expected);
    assert!(settings.feeds.iter().all(|feed| feed.role == Role::Region));
    for part in
        ["switched off there", "RepositoryType svn", "svn export", "SvnPassword: not carried"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("username"), "{text}");
}

#[test]
fn one_that_commits_becomes_the_primary_unless_another_is() {
    let commits = CARBON.replace("<AutoCommit>false", "<AutoCommit>true");
    let poll = "<AutoSyncPeriod>90</AutoSyncPeriod><AutoCheckout>";
    let commits = commits.replace("<AutoCheckout>", poll);
    let text = from_carbon(&commits, &Given::default()).unwrap();
    let primary = settings(&text);
    assert_eq!(primary.feeds[0].role, Role::Primary);
    assert_eq!(primary.poll.as_secs(), 90);
    assert!(text.contains("choose one"), "{text}");
    let text = from_carbon(&commits, &given("/srv/apps", "http://hub:7873")).unwrap();
    assert_eq!(settings(&text).feeds[0].role, Role::Region);
    assert!(text.contains("depsync put"), "{text}");
    let often = commits.replace("90</", "0</");
    assert_eq!(settings(&from_carbon(&often, &Given::default()).unwrap()).poll.as_secs(), 1);
}

#[test]
fn all_that_is_missing_is_said() {
    let said = from_carbon(CARBON, &Given::default()).unwrap_err();
    assert!(said.ends_with("another one commits: name that with --upstream URL"), "{said}");
    let commits = CARBON.replace("<AutoCommit>false", "<AutoCommit>true");
    let named = Given { name: Some("eu".parse().unwrap()), ..given("/srv/apps", "") };
    let said = from_carbon(&commits, &named).unwrap_err();
    assert!(said.contains("a region mirrors another node: name that with --upstream"), "{said}");
    let said = around(|around| {
        ego("<a/>", Path::new("rs.xml"), None, &named, around).unwrap_err().to_string()
    });
    assert!(said.contains("a region mirrors another node: name that with --upstream"), "{said}");
    let nowhere = CARBON.replace("carbon.home", "somewhere");
    let said = from_carbon(&nowhere, &Given::default()).unwrap_err();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(lines[0].contains("nothing here says what ${somewhere} is"), "{said}");
    assert!(lines[0].contains("--dir DIR") && lines[1].contains("--upstream URL"), "{said}");
    let said = around(|around| {
        let rs = "<a/>";
        ego(rs, Path::new("rs.xml"), None, &Given::default(), around).unwrap_err().to_string()
    });
    assert_eq!(said, "rs.xml: it names no deployment directory: name it with --dir DIR");
    let said = around(|around| {
        nodes_list(NODES, Path::new("nodes-list.txt"), &Given::default(), around).unwrap_err()
    });
    assert!(said.to_string().contains("not from where: name the directory with --dir"), "{said}");
}

#[test]
fn the_repository_service_and_its_regions() {
    let rs = include_str!("../../../tests/data/import/rs.xml").replace("@STORAGE@", "/var/rs");
    let unknown = "<Regions>\n<Region name='eu'><Subnet>10.0.0.0/8</Subnet></Region>\n</Regions>";
    let known = "<Regions><Region name='eu'><IPRange>10.0.0.0/8</IPRange></Region></Regions>";
    let table = Path::new("/ego/region.xml");
    let convert = |table: Option<(&str, &Path)>| {
        let given = given("/srv/apps", "");
        around(|around| ego(&rs, Path::new("rs.xml"), table, &given, around).unwrap())
    };
    let text = convert(Some((known, table)));
    let read = settings(&text);
    assert_eq!((read.listen.port(), read.state_dir.as_path()), (8099, Path::new("/var/rs")));
    assert_eq!(read.regions.as_deref(), Some(table));
    assert_eq!(read.bandwidth.max_downloads, Some(40));
    assert!(text.contains("RS_LOG_LEVEL is not used"), "{text}");
    let text = convert(Some((unknown, table)));
    assert!(settings(&text).regions.is_none());
    assert!(text.contains("/ego/region.xml:2: <Subnet> is not known"), "{text}");
    assert!(settings(&convert(None)).regions.is_none());
}

#[test]
fn the_list_gives_the_primary_and_each_region() {
    let file = Path::new("nodes-list.txt");
    let dir = "/opt/wso2/repository/deployment/server";
    let convert = |given: &Given| around(|around| nodes_list(NODES, file, given, around));
    let text = convert(&given(dir, "")).unwrap();
    let primary = settings(&text);
    assert_eq!(primary.feeds.len(), 2, "{text}");
    assert_eq!(primary.feeds[0].role, Role::Primary);
    let command = "depsync region /opt/as-worker2/repository/deployment/server --feed server \
                   --upstream http://node-1:7873 --name 192.168.30.2";
    assert!(text.contains(command), "{text}");
    let named = |name: &str, given: Given| Given { name: Some(name.parse().unwrap()), ..given };
    let region = convert(&named("192.168.30.2", given("", "http://hub:7873"))).unwrap();
    let region = settings(&region);
    let expected = Path::new("/opt/as-worker2/repository/deployment/server");
    assert_eq!(region.feeds[0].dir(), Some(expected));
    for (name, part) in [("192.168.30.1", "somebody's home"), ("eu", "no place of it is called eu")]
    {
        let said = convert(&named(name, given("", ""))).unwrap_err().to_string();
        assert!(said.contains(part) && said.contains("--upstream URL"), "{said}");
    }
}
