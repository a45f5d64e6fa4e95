//! Scenarios on real processes: what is done to a cluster, and what must be seen.
//!
//! Each file tells the scenarios of one stage; `world` starts and stops the nodes, `oracle` reads
//! folders independently of the code under test. Other programs check where they can: `git`,
//! `curl`, `sha256sum`.
#![expect(
    unreachable_pub,
    clippy::pedantic,
    clippy::disallowed_methods,
    clippy::panic,
    clippy::unwrap_used,
    reason = "scenarios, read as stories"
)]

mod bad_input;
mod bad_network;
mod bus;
mod checkout;
mod checkout_faults;
mod churn;
mod crash;
mod downloads;
mod downloads_limits;
mod downloads_redirects;
mod downloads_releases;
mod examples;
mod fleet;
mod fleet_faults;
mod full_disk;
mod guarded;
mod history;
mod hooks;
mod import;
mod logs;
mod mirror;
mod nats;
mod oracle;
mod origin;
mod origin_guard;
mod origin_settling;
mod origin_shapes;
mod origin_watching;
mod power_cut;
mod proxy;
mod real_input;
mod replication;
mod service;
mod stock_clients;
mod store;
mod terminal;
mod transfer;
mod trust;
mod trust_signed;
mod trust_tls;
mod world;
