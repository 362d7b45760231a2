//! State for those who keep it at the destination, and what Home Assistant needs to know.

pub mod homeassistant;
pub mod keeping;
