//! The primary's side on a real directory and a real repository; git is the oracle.

mod deletions;
mod settling;
mod shapes;
mod watching;
mod world;
