//! `completions` and `man`: what shells and `man` know of the commands, made from the commands
//! themselves.

use std::{fs, io::stdout, path::PathBuf};

use anyhow::{Context, Result};
use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl CompletionsArgs {
    pub(super) fn run(self) {
        clap_complete::generate(self.shell, &mut super::Cli::command(), "depsync", &mut stdout());
    }
}

/// Arguments of `man`.
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// The folder that the pages are written into; it is made
    dir: PathBuf,
}

impl ManArgs {
    pub(super) fn run(self) -> Result<()> {
        let dir = self.dir.display();
        fs::create_dir_all(&self.dir).with_context(|| format!("{dir} cannot be made"))?;
        let command = super::Cli::command();
        clap_mangen::generate_to(command, &self.dir)
            .with_context(|| format!("pages cannot be written into {dir}"))
    }
}
