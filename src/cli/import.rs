//! `import`: prints a `depsync.toml` made from the files of what was used before.
//!
//! What could not be carried over stands in its comments; nothing is written anywhere.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Error;
use crate::{
    config::{
        BaseUrl,
        import::{self, Given, Kind},
    },
    model::RegionName,
};

/// Whose files are read.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum From {
    /// A WSO2 server's carbon.xml [default: below `$CARBON_HOME`]
    Carbon,
    /// EGO's service profile rs.xml and its region.xml [default: below `$EGO_CONFDIR`]
    Ego,
    /// The rsync recipe's nodes-list.txt [default: in this folder]
    NodesList,
}

/// Arguments of `import`.
#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// Whose files are read
    #[arg(value_enum)]
    from: From,
    /// The file
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The deployment directory, where the file names none or another is meant
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The node to mirror from, which no such file names
    #[arg(long, value_name = "URL")]
    upstream: Option<BaseUrl>,
    /// The region that this node serves [default: as the host]; of nodes-list: make that node's file
    #[arg(long, value_name = "REGION")]
    name: Option<RegionName>,
}

impl ImportArgs {
    pub(super) fn run(self) -> Result<(), Error> {
        let kind = match self.from {
            From::Carbon => Kind::Carbon,
            From::Ego => Kind::Ego,
            From::NodesList => Kind::NodesList,
        };
        let dir = self.dir.map(|dir| std::path::absolute(&dir).unwrap_or(dir));
        let given = Given { dir, upstream: self.upstream, name: self.name };
        print!("{}", import::read(kind, self.file.as_deref(), &given)?);
        Ok(())
    }
}
