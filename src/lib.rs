//! depsync keeps deployment directories identical across regions, backed by git.

pub mod bus;
pub mod disk;
pub mod hooks;
pub mod ledger;
pub mod model;
pub mod origin;
pub mod replica;
pub mod serve;
pub mod store;
pub mod sys;
