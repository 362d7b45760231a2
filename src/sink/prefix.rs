//! What the addresses of the state begin with: a template over the channel, the same for each kind of
//! sink that has one.
//!
//! The relay's own state stands where that of a channel named `relay` would, so
//! no channel may have that label beside a sink that keeps state.

use super::address;
use crate::{base::template::Template, channel::store::StateKey};

/// A template over `channel`.
#[derive(Debug)]
pub(crate) struct Prefix(Template);

impl Prefix {
    /// Compiles it; the error says what is wrong. `forbidden` must not stand in it.
    pub(crate) fn new(text: &str, forbidden: &[char]) -> Result<Self, String> {
        let prefix = Self(Template::compile(text)?);
        if !prefix.0.uses_only(&["channel"]) {
            return Err("only {{ channel }} is known here: a state belongs to no event".into());
        }
        if let Some(found) = address::literals(text).chars().find(|c| forbidden.contains(c)) {
            return Err(format!("{found:?} must not stand here"));
        }
        if prefix.render("a")? == prefix.render("b")? {
            return Err("{{ channel }} is missing: each channel has a place of its own".into());
        }
        Ok(prefix)
    }

    /// For a part of the state.
    pub(crate) fn of(&self, path: &StateKey) -> Result<String, String> {
        self.render(path.owner())
    }

    fn render(&self, owner: &str) -> Result<String, String> {
        let view = minijinja::context! { channel => owner };
        self.0.render(&view).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::store::Section;

    #[test]
    fn each_channel_has_a_place_of_its_own_and_the_relay_too() {
        let prefix = Prefix::new("home/{{ channel }}", &['+']).unwrap();
        assert_eq!(prefix.of(&StateKey::of("main", Section::Stream)).unwrap(), "home/main");
        assert_eq!(prefix.of(&StateKey::relay(Section::Status)).unwrap(), "home/relay");
        for text in ["home", "+/{{ channel }}", "{{ topic }}/{{ channel }}", "{{ channel"] {
            assert!(Prefix::new(text, &['+']).is_err(), "{text}");
        }
    }
}
