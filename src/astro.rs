//! All that is StreamElements: the gateway, its topics, its REST API.

pub mod topics;
