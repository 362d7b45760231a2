//! A quick walk over a text that may be JSON, for those who want a few of its members and not a tree of it.
//!
//! Whatever finds that the text is no JSON answers `None`, and so does what is too odd to be walked here: the
//! general readers are asked then. What was walked to its end is JSON, but that a string may hold control
//! characters as they are.

use memchr::memchr2;

/// The lowest bit of each byte of a word.
const LOWEST: u64 = 0x0101_0101_0101_0101;

/// The highest bit of each byte that is zero, and perhaps of some behind the first of them.
fn zeros(word: u64) -> u64 {
    word.wrapping_sub(LOWEST) & !word & (LOWEST << 7)
}

/// A place in the text.
pub(crate) struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// How many bytes are behind.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// The next byte that is no white space; stays before it. `None`: the text ends.
    pub(crate) fn peek(&mut self) -> Option<u8> {
        loop {
            match self.byte()? {
                b' ' | b'\n' | b'\r' | b'\t' => self.at += 1,
                byte => return Some(byte),
            }
        }
    }

    /// The same, and goes behind it.
    pub(crate) fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    pub(crate) fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    /// Walks an object: `member` gets each name, and goes behind its value. A name with an escape is too odd.
    pub(crate) fn members(
        &mut self,
        mut member: impl FnMut(&mut Self, &'a str) -> Option<()>,
    ) -> Option<()> {
        self.expect(b'{')?;
        if self.peek()? == b'}' {
            return self.expect(b'}');
        }
        loop {
            let name = self.plain_string()?;
            self.expect(b':')?;
            member(self, name)?;
            match self.next()? {
                b',' => {}
                b'}' => return Some(()),
                _ => return None,
            }
        }
    }

    /// What `walk` goes over, as it is written; where it finds something too odd, the place stays.
    pub(crate) fn over(&mut self, walk: impl FnOnce(&mut Self) -> Option<()>) -> Option<&'a str> {
        self.peek()?;
        let from = self.at;
        let walked = walk(self).and_then(|()| self.text.get(from..self.at));
        if walked.is_none() {
            self.at = from;
        }
        walked
    }

    /// What lies between the quotes of a string; one with an escape is too odd.
    pub(crate) fn plain_string(&mut self) -> Option<&'a str> {
        let (text, is_plain) = self.quoted()?;
        is_plain.then_some(text)
    }

    /// What lies between the quotes of a string, escapes as they are written.
    pub(crate) fn string(&mut self) -> Option<&'a str> {
        self.quoted().map(|(text, _)| text)
    }

    /// A value of any kind, as it is written.
    pub(crate) fn value(&mut self) -> Option<&'a str> {
        self.value_with_names(|_, _| {})
    }

    /// The same; `with_name` gets the name of each member in it, at whatever depth, escapes as they are written,
    /// and whether it has none.
    pub(crate) fn value_with_names(
        &mut self,
        mut with_name: impl FnMut(&'a str, bool),
    ) -> Option<&'a str> {
        self.peek()?;
        let from = self.at;
        // What is open around the place, the innermost in the lowest bit: an object is a one. Another
        // one stands above all of them, so there is room for 63; no payload that is known needs seven.
        let mut open = 1_u64;
        loop {
            match self.peek()? {
                b'"' => self.string().map(drop)?,
                bracket @ (b'{' | b'[') => {
                    if open.leading_zeros() == 0 {
                        return None;
                    }
                    self.at += 1;
                    let object = bracket == b'{';
                    open = open << 1 | u64::from(object);
                    match (self.peek()?, object) {
                        // Nothing in it: it is closed below.
                        (b'}', true) | (b']', false) => {}
                        (_, true) => {
                            let (name, is_plain) = self.name()?;
                            with_name(name, is_plain);
                            continue;
                        }
                        (_, false) => continue,
                    }
                }
                b't' => self.literal("true")?,
                b'f' => self.literal("false")?,
                b'n' => self.literal("null")?,
                _ => self.number()?,
            }
            // A value has ended, and perhaps with it what it stands in.
            loop {
                if open == 1 {
                    return self.text.get(from..self.at);
                }
                let object = open & 1 == 1;
                match (self.next()?, object) {
                    (b'}', true) | (b']', false) => open >>= 1,
                    (b',', true) => {
                        let (name, is_plain) = self.name()?;
                        with_name(name, is_plain);
                        break;
                    }
                    (b',', false) => break,
                    _ => return None,
                }
            }
        }
    }

    /// A member's name, and the colon behind it; whether it has no escape.
    fn name(&mut self) -> Option<(&'a str, bool)> {
        let name = self.quoted()?;
        self.expect(b':')?;
        Some(name)
    }

    /// What lies between the quotes of a string; whether it has no escape.
    fn quoted(&mut self) -> Option<(&'a str, bool)> {
        self.expect(b'"')?;
        let (from, mut is_plain) = (self.at, true);
        while self.skip_to_quote()? != b'"' {
            is_plain = false;
            self.escape()?;
        }
        Some((self.text.get(from..self.at - 1)?, is_plain))
    }

    fn byte(&self) -> Option<u8> {
        self.rest().first().copied()
    }

    fn rest(&self) -> &'a [u8] {
        self.text.as_bytes().get(self.at..).unwrap_or_default()
    }

    /// Goes behind the next quote or backslash, and answers which it is.
    fn skip_to_quote(&mut self) -> Option<u8> {
        /// Most strings are shorter: to begin a search in them takes longer than to look at their words.
        const SHORT: usize = 32;
        const QUOTES: u64 = LOWEST * b'"' as u64;
        const BACKSLASHES: u64 = LOWEST * b'\\' as u64;
        let rest = self.rest();
        let mut before = 0;
        let end = loop {
            let Some(word) = rest.get(before..SHORT).and_then(<[u8]>::first_chunk) else {
                break before + memchr2(b'"', b'\\', rest.get(before..)?)?;
            };
            let word = u64::from_le_bytes(*word);
            let ends = zeros(word ^ QUOTES) | zeros(word ^ BACKSLASHES);
            if ends != 0 {
                break before + ends.trailing_zeros() as usize / 8;
            }
            before += 8;
        };
        self.at += end + 1;
        rest.get(end).copied()
    }

    fn escape(&mut self) -> Option<()> {
        let escape = self.byte()?;
        self.at += 1;
        match escape {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(()),
            b'u' => {
                let hex = self.rest().get(..4)?;
                self.at += 4;
                hex.iter().all(u8::is_ascii_hexdigit).then_some(())
            }
            _ => None,
        }
    }

    fn literal(&mut self, literal: &str) -> Option<()> {
        self.rest().starts_with(literal.as_bytes()).then(|| self.at += literal.len())
    }

    fn number(&mut self) -> Option<()> {
        if self.byte()? == b'-' {
            self.at += 1;
        }
        // No zero before another digit.
        if self.byte()? == b'0' {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.byte() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.byte(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.byte(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Some(())
    }

    /// One digit at least.
    fn digits(&mut self) -> Option<()> {
        let from = self.at;
        while self.byte().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > from).then_some(())
    }
}
