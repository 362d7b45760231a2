//! What the tests share: real servers as child processes, and waiting for a condition.

pub mod asyncapi;
pub mod browser;
pub mod carry;
pub mod clock;
pub mod daemon;
pub mod driven;
pub mod journal;
pub mod mosquitto;
pub mod mount;
pub mod nats_cluster;
pub mod nats_server;
pub mod process;
pub mod receiver;
pub mod redis_server;
pub mod relay;
pub mod scripted_broker;
pub mod scripted_http;
pub mod scripted_nats;
pub mod scripted_peer;
pub mod scripted_redis;
pub mod sinks;
pub mod stdout_child;
pub mod terminal;
pub mod unreachable;
pub mod wait;
pub mod websocket_bridge;
