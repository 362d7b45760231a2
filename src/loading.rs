//! From files, environment and arguments to a [`Config`](crate::config::Config), or to every problem at
//! once.

mod check;
mod layers;
pub mod load;
mod places;
pub mod schema;
mod shape;

pub(crate) use self::check::configured_secrets;
pub(crate) use self::load::LARGEST_FILE;
pub(crate) use self::schema::{is_secret, resolved};
pub use self::{
    load::{Loaded, Sources, load},
    schema::schema,
};
