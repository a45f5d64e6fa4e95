//! What is measured and what is said of it agree: the page, its documentation, dashboard and alerts.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use http::StatusCode;
use serde_json::Value;

use super::{Put, World, body, header};
use crate::bus::frame::{Ack, FromFollower, Outcome};

/// Kind and labels of each family.
type Families = BTreeMap<String, (String, Vec<String>)>;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn documented() -> Families {
    let text = read("docs/metrics.md");
    let rows = text.lines().filter(|line| line.starts_with("| `depsync_"));
    let family = |row: &str| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 4, "{row}");
        assert!(cells[3].ends_with('.') && cells[3].len() > 10, "{row} says what it means");
        let labels = cells[2].split(", ").filter(|it| !it.is_empty()).map(str::to_owned);
        (cells[0].trim_matches('`').to_owned(), (cells[1].to_owned(), labels.collect()))
    };
    rows.map(family).collect()
}

/// The names of labels: what stands before `="`.
fn labels_of(sample: &str) -> Vec<String> {
    let Some((_, rest)) = sample.split_once('{') else { return Vec::new() };
    let names = rest.split("=\"").map(|part| part.rsplit(['"', ',', '{']).next().unwrap());
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.pop();
    names.retain(|name| name != "le");
    names
}

async fn exposed(world: &World) -> (Families, String) {
    let answer = world.get("/metrics", &[]).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(header(&answer, "content-type").starts_with("text/plain; version=0.0.4"));
    let text = String::from_utf8(body(answer).await.to_vec()).unwrap();
    let mut families = Families::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            let twice = families.insert(name.to_owned(), (kind.to_owned(), Vec::new()));
            assert!(twice.is_none(), "{name} is there twice");
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let (name, family) = family(&mut families, name).unwrap_or_else(|| panic!("{line}"));
            let labels = labels_of(line.rsplit_once(' ').unwrap().0);
            assert!(family.1.is_empty() || family.1 == labels, "{name}: {line}");
            family.1 = labels;
        }
    }
    (families, text)
}

/// The family that a sample belongs to: of a histogram it has several.
fn family<'f>(
    families: &'f mut Families,
    sample: &str,
) -> Option<(String, &'f mut (String, Vec<String>))> {
    let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| sample.strip_suffix(end));
    let name = match base {
        Some(base) if families.get(base).is_some_and(|it| it.0 == "histogram") => base,
        _ => sample,
    };
    families.get_mut(name).map(|family| (name.to_owned(), family))
}

/// A primary with a region that has verified a version, so that most families have samples.
fn busy() -> World {
    let world = World::primary();
    world.mirror("http://eu.example:1");
    world.publish(&[("a", Put::Blob(b"hello"))]);
    let head = world.desk.head().unwrap();
    let ack = FromFollower::Ack(Ack::new(head, Outcome::Verified, 3, None));
    world.desk.take(&"node-eu".parse().unwrap(), 1, ack).expect("it was the first to say hello");
    world
}

#[tokio::test]
async fn every_metric_is_documented_and_every_documented_one_exists() {
    let (exposed, text) = exposed(&busy()).await;
    let documented = documented();
    let names = |families: &Families| families.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&exposed), names(&documented), "docs/metrics.md lists what is exposed");
    for (name, (kind, labels)) in &exposed {
        let (said, said_labels) = &documented[name];
        assert_eq!(kind, said, "{name}");
        let has_sample = text.lines().any(|line| {
            line.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with(['{', '_', ' ']))
        });
        assert!(!has_sample || labels == said_labels, "{name}: {labels:?}, said {said_labels:?}");
    }
    assert!(text.contains("depsync_propagation_seconds_count{feed=\"apps\"} 1\n"), "{text}");
    assert!(text.contains("depsync_propagation_seconds_bucket{feed=\"apps\",le=\"+Inf\"} 1\n"));
    assert!(text.contains("label=\"eu-1\",region=\"eu\"} 1\n"), "{text}");
}

#[tokio::test]
async fn a_page_is_what_prometheus_reads() {
    let (_, text) = exposed(&busy()).await;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (sample, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
        assert!(sample.starts_with("depsync_"), "{line}");
    }
}

/// Each name of ours in an expression must be one that is exposed.
fn check_names(what: &str, expression: &str) {
    let documented = documented();
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let names = expression.split(|c| !is_name(c)).filter(|word| word.starts_with("depsync_"));
    let mut count = 0;
    for name in names {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let known = documented.contains_key(name)
            || base.is_some_and(|base| documented.get(base).is_some_and(|it| it.0 == "histogram"));
        assert!(known, "{what}: there is no metric {name}");
        count += 1;
    }
    assert!(count > 0 || expression.contains("up{"), "{what}: {expression} names none of ours");
}

#[test]
fn the_dashboard_names_metrics_that_exist() {
    let dashboard: Value = serde_json::from_str(&read("examples/grafana/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 10);
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        for target in targets {
            check_names(title, target["expr"].as_str().unwrap());
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap().iter().skip(1) {
        check_names("a variable", variable["query"].as_str().unwrap());
    }
}

#[test]
fn the_alert_rules_can_be_read_and_name_metrics_that_exist() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/prometheus/alerts.yml");
    let read = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
    let output = Command::new("python3").args(["-c", read]).arg(path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let rules: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rules = rules["groups"][0]["rules"].as_array().unwrap();
    assert!(rules.len() > 8);
    for rule in rules {
        let name = rule["alert"].as_str().unwrap();
        check_names(name, rule["expr"].as_str().unwrap());
        for part in [&rule["annotations"]["summary"], &rule["annotations"]["description"]] {
            assert!(part.as_str().is_some_and(|text| text.len() > 10), "{name} says what to do");
        }
        assert!(rule["labels"]["severity"].is_string(), "{name}");
    }
}

/// Each kind of fault is explained, and no other.
#[test]
fn every_kind_of_fault_is_documented() {
    let page = read("docs/health.md");
    let rows = page.lines().skip_while(|line| !line.starts_with("## Kinds"));
    let kinds = rows.filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let mut said: Vec<&str> = kinds.collect();
    said.sort_unstable();
    let mut known = crate::serve::diagnosis::KINDS.to_vec();
    known.sort_unstable();
    assert_eq!(said, known, "docs/health.md");
}
