//! `key create`: a key to sign commits with, and the line by which mirrors believe it.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::{config, signing};

/// Arguments of `key`.
#[derive(Debug, Args)]
pub(super) struct KeyArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an Ed25519 key, and print the line for the mirrors' `trusted_keys`
    Create {
        /// Where the private half goes; the public half goes beside it, in FILE.pub
        file: PathBuf,
        /// Whose it is, without spaces [default: the host's name]
        #[arg(long, value_name = "NAME", value_parser = name)]
        name: Option<String>,
    },
}

fn name(text: &str) -> std::result::Result<String, String> {
    let is_name = !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() && c != '"');
    is_name.then(|| text.to_owned()).ok_or_else(|| "it is one word".to_owned())
}

impl KeyArgs {
    pub(super) fn run(self) -> Result<()> {
        let Command::Create { file, name } = self.command;
        let line = signing::create(&file, &name.unwrap_or_else(config::host_name))?;
        println!("{line}");
        eprintln!(
            "sign_with = \"{}\" signs with it; append the line above to every trusted_keys",
            file.display()
        );
        Ok(())
    }
}
