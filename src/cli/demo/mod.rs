//! `demo`: a primary and two regions on this machine, with real artifacts, each step timed.
//!
//! The three nodes are child processes of this same program, started as anybody would start them;
//! everything lies in one temporary directory that goes away with the demo. Every step waits for
//! what it promises to be seen, with a deadline, and says which one was not.

mod artifact;
mod nodes;

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use reqwest::Method;
use sha2::{Digest, Sha256};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    client::{Client, block_on},
    table::items,
};
use crate::config::BaseUrl;
use nodes::{Nodes, Stat, seen};

/// How long a step may take on a slow machine.
const DEADLINE: Duration = Duration::from_secs(60);
/// A region's compute hosts, as region.xml of the demo has them: loopback is a whole network.
const EU_HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Stop when everything has been seen, instead of serving until Ctrl-C
    #[arg(long)]
    once: bool,
}

impl DemoArgs {
    pub(super) fn run(self) -> Result<()> {
        block_on(async {
            let mut interrupt = signal(SignalKind::interrupt())?;
            let mut terminate = signal(SignalKind::terminate())?;
            // The nodes outlive a closed terminal, so the demo must not.
            let mut hangup = signal(SignalKind::hangup())?;
            let place = tempfile::Builder::new().prefix("depsync-demo-").tempdir()?;
            // By their real paths, as the nodes have them.
            let mut nodes = Nodes::new(place.path().canonicalize()?);
            let done = tokio::select! {
                done = show(&mut nodes, self.once) => done,
                _ = interrupt.recv() => Ok(()),
                _ = terminate.recv() => Ok(()),
                _ = hangup.recv() => Ok(()),
            };
            let done = done.map_err(|error| nodes.explain(&error));
            nodes.stop().await;
            done
        })
    }
}

async fn show(nodes: &mut Nodes, once: bool) -> Result<()> {
    nodes.make_directories()?;
    step("a primary and two regions are up and connected", start(nodes)).await?;
    let apps = nodes.primary.dir.clone();

    let war = artifact::web_archive("1.0");
    let what = format!("shop.war ({}) copied in: at both regions", size(war.len()));
    step(&what, async {
        copy_in(&apps.join("shop.war"), &war)?;
        mirrored(nodes).await
    })
    .await?;

    let pages = artifact::pages(200);
    step(&format!("a folder of {} small files copied in: at both regions", pages.len()), async {
        for (name, content) in &pages {
            copy_in(&apps.join("static").join(name), content)?;
        }
        mirrored(nodes).await
    })
    .await?;

    step("one page edited: at both regions", async {
        copy_in(&apps.join("static/page-007.html"), b"<p>edited</p>\n")?;
        mirrored(nodes).await
    })
    .await?;

    let next = artifact::web_archive("1.1");
    step("shop.war replaced by version 1.1: at both regions", async {
        copy_in(&apps.join("shop.war"), &next)?;
        mirrored(nodes).await
    })
    .await?;

    step("a compute host of eu-west asks the primary, and its own region serves it", async {
        redirected(nodes, &next).await
    })
    .await?;

    step("ten pages deleted: gone at both regions", async {
        for page in pages.iter().take(10) {
            fs::remove_file(apps.join("static").join(&page.0))?;
        }
        mirrored(nodes).await
    })
    .await?;

    step("all three directories are equal, by SHA-256, mode and time", async { equal(nodes) })
        .await?;
    if once {
        println!("everything was seen");
        return Ok(());
    }
    println!("{}", how_to_try(nodes));
    std::future::pending().await
}

/// Runs a step to its end or its deadline, and says how long it took.
async fn step(what: &str, work: impl Future<Output = Result<()>>) -> Result<()> {
    let begun = Instant::now();
    let done = tokio::time::timeout(DEADLINE, work).await;
    done.map_err(|_| anyhow::anyhow!("not seen within {DEADLINE:?}"))
        .flatten()
        .with_context(|| format!("step \"{what}\""))?;
    println!("{:>7} ms  {what}", begun.elapsed().as_millis());
    Ok(())
}

async fn start(nodes: &mut Nodes) -> Result<()> {
    nodes.primary.start(&[])?;
    let upstream = nodes.primary.url().await?;
    for region in [&mut nodes.eu, &mut nodes.us] {
        let name = region.name;
        region.start(&["--upstream", upstream.as_str(), "--name", name])?;
    }
    let (eu, us) = (nodes.eu.url().await?, nodes.us.url().await?);
    let client = Client::from_address(Ipv4Addr::LOCALHOST.into(), &upstream)?;
    seen(async || {
        nodes.all_alive()?;
        let answer = client.list("/v1/nodes", "nodes").await?;
        let nodes = items(&answer, "nodes");
        let connected = |url: &BaseUrl| nodes.iter().any(|node| node["url"] == url.as_str());
        Ok(connected(&eu) && connected(&us))
    })
    .await
}

/// Writes under another name first, as a careful deployer does.
fn copy_in(path: &Path, content: &[u8]) -> Result<()> {
    let folder = path.parent().context("it lies in the feed's folder")?;
    fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new().prefix(".depsync-tmp-").tempfile_in(folder)?;
    io::Write::write_all(&mut file, content)?;
    file.persist(path)?;
    Ok(())
}

/// Until both mirrors show what the primary's directory holds.
async fn mirrored(nodes: &Nodes) -> Result<()> {
    let wanted = nodes.primary.listing()?;
    seen(async || {
        nodes.all_alive()?;
        let same = |found: io::Result<Vec<(PathBuf, Stat)>>| {
            // A name may go away while a mirror is being walked.
            found.is_ok_and(|found| found == wanted)
        };
        Ok(same(nodes.eu.listing()) && same(nodes.us.listing()))
    })
    .await
}

async fn redirected(nodes: &Nodes, wanted: &[u8]) -> Result<()> {
    let client = Client::from_address(EU_HOST, &nodes.primary.url().await?)?;
    let url = client.url("/v1/feeds/default/files/shop.war")?;
    println!("            GET {url} from {EU_HOST}");
    let answer = client.send(Method::GET, url, |request| request).await?;
    println!("            → {}", answer.url());
    let served_by = answer.url().origin().ascii_serialization();
    let eu = nodes.eu.url().await?;
    ensure!(served_by == eu.as_str(), "{served_by} served it, and not the region {eu}");
    ensure!(answer.bytes().await? == wanted, "the region served other bytes");
    Ok(())
}

fn equal(nodes: &Nodes) -> Result<()> {
    let hashes = |node: &nodes::Node| -> Result<Vec<_>> {
        let listing = node.listing()?.into_iter();
        let hashed = listing.map(|(path, stat)| {
            let content = fs::read(node.dir.join(&path))?;
            Ok((path, stat, Sha256::digest(content)))
        });
        hashed.collect()
    };
    let primary = hashes(&nodes.primary)?;
    for region in [&nodes.eu, &nodes.us] {
        if hashes(region)? != primary {
            bail!("{} differs from {}", region.dir.display(), nodes.primary.dir.display());
        }
    }
    Ok(())
}

fn how_to_try(nodes: &Nodes) -> String {
    let Nodes { primary, eu, us, .. } = nodes;
    let url = primary.known_url();
    format!(
        "\nServing until Ctrl-C. Try, in another terminal:\n  \
         cp FILE {}/ && ls {} {}\n  \
         depsync status --url {url}\n  \
         depsync log --url {url}\n  \
         depsync put FILE default/FILE --url {url} --state {}\n  \
         curl -vL --interface 127.0.0.2 -o shop.war {url}/v1/feeds/default/files/shop.war",
        primary.dir.display(),
        eu.dir.display(),
        us.dir.display(),
        primary.state.display(),
    )
}

fn size(bytes: usize) -> String {
    indicatif::HumanBytes(bytes as u64).to_string()
}
