//! Topic patterns: words between dots; `*` is one word, `**` at the end is the rest, or nothing.

/// A topic pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    words: Vec<Word>,
    /// Whether more may follow.
    open: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    Any,
    Is(Box<str>),
}

/// A text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// `a..b`, or nothing at all.
    #[error("{0:?} has an empty word")]
    Empty(String),
    /// `**` before the end.
    #[error("{0:?}: ** stands for the rest, so it can only be the last word")]
    Inside(String),
    /// `chan*`.
    #[error("{0:?}: * stands for a whole word")]
    Part(String),
}

impl Pattern {
    /// Reads a pattern.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let mut words: Vec<_> = text.split('.').collect();
        let open = words.last() == Some(&"**");
        if open {
            words.pop();
        }
        let word = |word: &str| match word {
            "" => Err(PatternError::Empty(text.into())),
            "*" => Ok(Word::Any),
            "**" => Err(PatternError::Inside(text.into())),
            part if part.contains('*') => Err(PatternError::Part(text.into())),
            plain => Ok(Word::Is(plain.into())),
        };
        Ok(Self { words: words.into_iter().map(word).collect::<Result<_, _>>()?, open })
    }

    /// Whether a topic fits.
    pub fn matches(&self, topic: &str) -> bool {
        let mut parts = topic.split('.');
        for word in &self.words {
            match (word, parts.next()) {
                (_, None) => return false,
                (Word::Any, Some(_)) => {}
                (Word::Is(word), Some(part)) => {
                    if **word != *part {
                        return false;
                    }
                }
            }
        }
        self.open || parts.next().is_none()
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let words = self.words.iter().map(|word| match word {
            Word::Any => "*",
            Word::Is(word) => word,
        });
        let rest = self.open.then_some("**");
        f.write_str(&words.chain(rest).collect::<Vec<_>>().join("."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_words() {
        let cases = [
            ("channel.tips", "channel.tips", true),
            ("channel.tips", "channel.tips.moderation", false),
            ("channel.tips", "channel.tipsy", false),
            ("channel.*", "channel.tips", true),
            ("channel.*", "channel.tips.moderation", false),
            ("channel.*", "channel", false),
            ("channel.**", "channel.tips.moderation", true),
            ("channel.**", "channel", true),
            ("channel.**", "relay.gap", false),
            ("*.gap", "relay.gap", true),
            ("**", "anything.at.all", true),
            ("*.*.*", "a.b.c", true),
            ("*.*.*", "a.b", false),
        ];
        for (pattern, topic, expected) in cases {
            let parsed = Pattern::parse(pattern).unwrap();
            assert_eq!(parsed.matches(topic), expected, "{pattern} {topic}");
            assert_eq!(parsed.to_string(), pattern);
        }
    }

    #[test]
    fn what_is_no_pattern_is_told() {
        for text in ["", "a..b", ".a", "a."] {
            assert_eq!(Pattern::parse(text), Err(PatternError::Empty(text.into())));
        }
        for text in ["chan*", "a.**b", "***"] {
            assert_eq!(Pattern::parse(text), Err(PatternError::Part(text.into())));
        }
        assert_eq!(Pattern::parse("**.a"), Err(PatternError::Inside("**.a".into())));
    }

    proptest::proptest! {
        #[test]
        fn a_topic_matches_itself_and_its_opening(words in proptest::collection::vec("[a-z]{1,4}", 1..5), cut in 0_usize..5) {
            let topic = words.join(".");
            proptest::prop_assert!(Pattern::parse(&topic).unwrap().matches(&topic));
            let opening = words[..cut.min(words.len())].iter().map(String::as_str).chain(["**"]).collect::<Vec<_>>().join(".");
            proptest::prop_assert!(Pattern::parse(&opening).unwrap().matches(&topic));
        }
    }
}
