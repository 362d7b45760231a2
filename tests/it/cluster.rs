//! Several relays as one, on three real nats-servers: what may die, be cut off and be upgraded, and what
//! arrives all the same.

mod bench;
mod demo;
mod faults;
mod letters;
mod losses;
mod many;
mod members;
mod page;
mod servers;
mod setup;
mod state;
