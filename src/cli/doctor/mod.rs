//! `doctor`: looks at this machine as a configuration needs it, and says what to do.
//!
//! `facts` gathers, `checks` judges, this prints. Changes nothing; may run beside the daemon. The exit
//! code is 1 when a check fails; warnings are told and do not count.

mod checks;
mod facts;

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use self::checks::{Finding, Verdict};
use super::{Error, paint, table::plain};
use crate::config::{self, Consent, Settings};

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// The configuration file [default: /etc/depsync/depsync.toml where it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// As it would be run with --insecure
    #[arg(long)]
    insecure: bool,
    /// Try the upstreams and the NATS server as well, as the daemon would connect to them
    #[arg(long)]
    connect: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl DoctorArgs {
    pub(super) fn run(self) -> Result<(), Error> {
        let (settings, first) = self.configuration();
        let facts = facts::gather(settings.as_ref(), self.connect);
        let mut findings = vec![first];
        findings.extend(checks::examine(&facts));
        let worst = findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok);
        if self.json {
            println!("{:#}", as_json(&findings, worst));
        } else {
            findings.iter().for_each(show);
        }
        if worst < Verdict::Fail {
            return Ok(());
        }
        let failed = findings.iter().filter(|finding| finding.verdict == Verdict::Fail).count();
        let s = if failed == 1 { "" } else { "s" };
        Err(anyhow::anyhow!("{failed} check{s} failed").into())
    }

    /// The settings where there are any, and what is to be said of the file.
    fn configuration(&self) -> (Option<Settings>, Finding) {
        let finding =
            |verdict, said, advice| Finding { check: "configuration", verdict, said, advice };
        let usual = Path::new(config::DEFAULT_FILE);
        let file = match &self.config {
            Some(file) => file,
            None if usual.exists() => usual,
            None => {
                let said =
                    format!("there is no {}; only this machine is looked at", usual.display());
                let advice = "name the file with --config FILE".to_owned();
                return (None, finding(Verdict::Warn, said, Some(advice)));
            }
        };
        let consent = Consent { insecure: self.insecure, adopt: false };
        match config::from_file(file, consent) {
            Ok(settings) => {
                (Some(settings), finding(Verdict::Ok, format!("{} is good", file.display()), None))
            }
            Err(error) => {
                let advice = "mend these; `depsync check` reads the file again".to_owned();
                (None, finding(Verdict::Fail, error.to_string().replace('\n', "; "), Some(advice)))
            }
        }
    }
}

fn show(finding: &Finding) {
    let Finding { check, verdict, said, advice } = finding;
    let verdict = match verdict {
        Verdict::Ok => paint::good(verdict.name()),
        Verdict::Warn => paint::warning(verdict.name()),
        Verdict::Fail => paint::bad(verdict.name()),
    };
    println!("{verdict:4}  {check:13}  {}", plain(said));
    if let Some(advice) = advice {
        println!("{:4}  {:13}  -> {}", "", "", plain(advice));
    }
}

fn as_json(findings: &[Finding], worst: Verdict) -> serde_json::Value {
    let finding = |finding: &Finding| {
        json!({
            "check": finding.check,
            "verdict": finding.verdict.name(),
            "said": finding.said,
            "advice": finding.advice,
        })
    };
    json!({ "verdict": worst.name(), "checks": findings.iter().map(finding).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests;
