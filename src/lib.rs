//! depsync keeps deployment directories identical across a cluster and its regions, backed by git.
//!
//! The way of the data is change → commit → announce → fetch → checkout → serve, and the modules say
//! so: [`origin`] is the primary's side, [`replica`] the mirror's, [`serve`] the HTTP edge,
//! [`upkeep`] what goes on quietly; [`bus`]
//! is where they meet. They stand on [`disk`] (a deployment directory), [`store`] (a feed's
//! repository), [`ledger`] (the state directory) and [`hooks`]; under all lie [`model`] (nouns and
//! rules) and [`sys`] (system calls). [`daemon`] alone assembles them, from what [`config`] read and
//! [`cli`] was told. Imports run downwards only; a test holds that.
//!
//! On disk: `<state>/format`, `node`, `lock`, `admin.token`, `address` are [`ledger::state_dir`]'s,
//! `decisions.json` and `ledger.db` [`ledger`]'s; `<state>/feeds/<feed>/git` and `spool` [`store`]'s,
//! `aside` [`disk`]'s, `journal` the checkout's.

pub mod bus;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod disk;
pub mod hooks;
pub mod ledger;
pub mod model;
pub mod origin;
pub mod replica;
pub mod serve;
pub mod signing;
pub mod store;
pub mod sys;
pub mod tls;
pub mod upkeep;
