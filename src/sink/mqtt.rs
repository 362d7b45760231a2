//! placeholder
use super::{Kind, Opening, Sink};
use crate::config::ConfigError;
pub(super) const KIND: Kind = Kind {
    name: "mqtt",
    summary: "",
    address: None,
    secrets: &[],
    schema: || schemars::schema_for!(String),
    open,
};
fn open(opening: Opening<'_>) -> Result<Box<dyn Sink>, ConfigError> {
    Err(ConfigError::at(&["sinks", opening.name, "type"], "not yet"))
}
