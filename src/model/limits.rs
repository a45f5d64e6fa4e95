//! How much one client may ask of a node: far more than an honest one does.
//!
//! They keep one that runs wild, or means harm, from taking what the others need. What is sent has
//! limits of its own, in bytes (`rate_plan`).

/// How much one client may ask for: far more than an honest one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections that one address may have open.
    pub connections_per_client: usize,
    /// Requests a second from one address.
    pub requests_per_client: u32,
    /// Requests a second with one token.
    pub requests_per_token: u32,
}

impl Default for Limits {
    /// A region behind one address may hold hundreds of nodes, and one token be a whole fleet's.
    fn default() -> Self {
        Limits {
            connections_per_client: 1_024,
            requests_per_client: 2_000,
            requests_per_token: 20_000,
        }
    }
}
