//! A strict JSON reader that holds to a text, knows where it is in it, and keeps nothing.
//!
//! It differs from RFC 8259 in nothing but three refusals: keys that stand twice in an object, depth, and numbers past
//! what binary64 holds. Callers say what they expect; what they do not know they [`skip`](Json::skip), checked alike.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

use super::Flaw;
use super::rules::MAX_DEPTH;

/// Characters of a number or a name that an error shows.
pub(super) const SHOWN_CHARS: usize = 40;

/// A flaw and where it is in the text.
#[derive(Debug)]
pub(super) struct Defect {
    pub(super) at: usize,
    pub(super) flaw: Flaw,
}

pub(super) type Parsed<T> = Result<T, Defect>;

pub(super) struct Json<'a> {
    text: &'a str,
    position: usize,
}

impl<'a> Json<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, position: 0 }
    }

    /// Where the next token begins.
    pub(super) fn token(&mut self) -> usize {
        let rest = self.rest();
        let token = rest.trim_start_matches([' ', '\t', '\n', '\r']);
        self.advance(rest.len().saturating_sub(token.len()));
        self.position
    }

    /// Fails unless only white space follows.
    pub(super) fn end(&mut self) -> Parsed<()> {
        self.token();
        if self.rest().is_empty() {
            Ok(())
        } else {
            Err(self.unexpected("the end"))
        }
    }

    /// An object: `member` reads the value of each key, and gets where the key begins.
    pub(super) fn object(
        &mut self,
        what: &'static str,
        mut member: impl FnMut(&mut Self, usize, Cow<'a, str>) -> Parsed<()>,
    ) -> Parsed<()> {
        self.expect('{', what)?;
        if self.take('}') {
            return Ok(());
        }
        loop {
            let begin = self.token();
            let key = self.string("a key")?;
            self.expect(':', "':'")?;
            member(self, begin, key)?;
            if !self.take(',') {
                return self.expect('}', "',' or '}'");
            }
        }
    }

    /// An array: `element` reads each element.
    pub(super) fn array(
        &mut self,
        what: &'static str,
        mut element: impl FnMut(&mut Self) -> Parsed<()>,
    ) -> Parsed<()> {
        self.expect('[', what)?;
        if self.take(']') {
            return Ok(());
        }
        loop {
            element(self)?;
            if !self.take(',') {
                return self.expect(']', "',' or ']'");
            }
        }
    }

    /// A whole number from 0 to 2^64 - 1, written without fraction or exponent.
    pub(super) fn number(&mut self, what: &'static str) -> Parsed<u64> {
        let at = self.token();
        if !self
            .rest()
            .starts_with(|c: char| c == '-' || c.is_ascii_digit())
        {
            return Err(self.unexpected("a whole number"));
        }
        let token = self.any_number()?;
        token.parse().map_err(|_| {
            let number = shown(token);
            Defect {
                at,
                flaw: Flaw::Number { what, number },
            }
        })
    }

    /// A string; borrowed unless it has escapes.
    pub(super) fn string(&mut self, what: &'static str) -> Parsed<Cow<'a, str>> {
        self.expect('"', what)?;
        let plain = self.plain();
        if self.take_here('"') {
            return Ok(Cow::Borrowed(plain));
        }
        let mut text = plain.to_owned();
        loop {
            if !self.take_here('\\') {
                return Err(self.unexpected("'\"', or an escape of what must be escaped"));
            }
            text.push(self.escape()?);
            text.push_str(self.plain());
            if self.take_here('"') {
                return Ok(Cow::Owned(text));
            }
        }
    }

    /// Passes over any value.
    pub(super) fn skip(&mut self) -> Parsed<()> {
        self.skip_at(0)
    }

    fn skip_at(&mut self, depth: usize) -> Parsed<()> {
        let at = self.token();
        let Some(deeper) = depth.checked_add(1).filter(|&depth| depth <= MAX_DEPTH) else {
            let flaw = Flaw::Depth { limit: MAX_DEPTH };
            return Err(Defect { at, flaw });
        };
        match self.next() {
            Some('{') => {
                let mut keys = HashSet::new();
                self.object("an object", |json, at, key| {
                    check_new("an object", &mut keys, at, key)?;
                    json.skip_at(deeper)
                })
            }
            Some('[') => self.array("an array", |json| json.skip_at(deeper)),
            Some('"') => self.string("a string").map(drop),
            Some('-' | '0'..='9') => self.any_number().map(drop),
            _ => {
                let word = ["true", "false", "null"]
                    .into_iter()
                    .find(|word| self.rest().starts_with(word));
                let word = word.ok_or_else(|| self.unexpected("a value"))?;
                self.advance(word.len());
                Ok(())
            }
        }
    }

    /// Any number that binary64 holds, as it stands in the text.
    fn any_number(&mut self) -> Parsed<&'a str> {
        let begin = self.position;
        self.take_here('-');
        if !self.take_here('0') {
            self.digits()?;
        }
        if self.take_here('.') {
            self.digits()?;
        }
        if self.take_here('e') || self.take_here('E') {
            if !self.take_here('-') {
                self.take_here('+');
            }
            self.digits()?;
        }
        let token = self.slice(begin..self.position);
        if token.parse::<f64>().is_ok_and(f64::is_finite) {
            return Ok(token);
        }
        self.position = begin;
        Err(self.unexpected("a number that binary64 holds"))
    }

    fn digits(&mut self) -> Parsed<()> {
        let rest = self.rest();
        let after = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        match rest.len().saturating_sub(after.len()) {
            0 => Err(self.unexpected("a digit")),
            len => {
                self.advance(len);
                Ok(())
            }
        }
    }

    /// The characters up to a quote, an escape, or one that needs an escape.
    fn plain(&mut self) -> &'a str {
        let rest = self.rest();
        let is_special = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..0x20);
        let len = rest.bytes().position(|byte| is_special(&byte));
        let begin = self.position;
        self.advance(len.unwrap_or(rest.len()));
        self.slice(begin..self.position)
    }

    /// What follows a backslash.
    fn escape(&mut self) -> Parsed<char> {
        let character = match self.next() {
            Some(character @ ('"' | '\\' | '/')) => character,
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => return self.unicode_escape(),
            _ => return Err(self.unexpected("an escape")),
        };
        self.advance(1);
        Ok(character)
    }

    /// `uXXXX`, or a surrogate pair of two.
    fn unicode_escape(&mut self) -> Parsed<char> {
        let begin = self.position;
        let first = self.code_unit()?;
        let mut units = vec![first];
        if (0xd800..0xdc00).contains(&first) && self.take_here('\\') {
            units.push(self.code_unit()?);
        }
        let mut decoded = char::decode_utf16(units);
        match (decoded.next(), decoded.next()) {
            (Some(Ok(character)), None) => Ok(character),
            _ => {
                self.position = begin;
                Err(self.unexpected("an escape of a character, not of a lone surrogate"))
            }
        }
    }

    fn code_unit(&mut self) -> Parsed<u16> {
        self.expect_here('u', "a second escape of a surrogate pair")?;
        let digits = self
            .rest()
            .get(..4)
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let unit = digits.and_then(|digits| u16::from_str_radix(digits, 16).ok());
        let unit = unit.ok_or_else(|| self.unexpected("four hexadecimal digits"))?;
        self.advance(4);
        Ok(unit)
    }

    /// Takes `token` after white space or fails: `what` was expected.
    fn expect(&mut self, token: char, what: &'static str) -> Parsed<()> {
        self.token();
        self.expect_here(token, what)
    }

    fn expect_here(&mut self, token: char, what: &'static str) -> Parsed<()> {
        if self.take_here(token) {
            Ok(())
        } else {
            Err(self.unexpected(what))
        }
    }

    fn take(&mut self, token: char) -> bool {
        self.token();
        self.take_here(token)
    }

    fn take_here(&mut self, token: char) -> bool {
        let is_there = self.rest().starts_with(token);
        if is_there {
            self.advance(token.len_utf8());
        }
        is_there
    }

    fn next(&self) -> Option<char> {
        self.rest().chars().next()
    }

    pub(super) fn unexpected(&self, expected: &'static str) -> Defect {
        let found = self.next();
        Defect {
            at: self.position,
            flaw: Flaw::Json { expected, found },
        }
    }

    fn rest(&self) -> &'a str {
        self.slice(self.position..self.text.len())
    }

    fn slice(&self, range: Range<usize>) -> &'a str {
        self.text.get(range).unwrap_or_default()
    }

    fn advance(&mut self, len: usize) {
        self.position = self.position.saturating_add(len);
    }
}

/// Notes `key`, or fails because it is there already.
pub(super) fn check_new<'a>(
    what: &'static str,
    keys: &mut HashSet<Cow<'a, str>>,
    at: usize,
    key: Cow<'a, str>,
) -> Parsed<()> {
    match keys.get(&key) {
        None => {
            keys.insert(key);
            Ok(())
        }
        Some(_) => {
            let key = key.into_owned();
            Err(Defect {
                at,
                flaw: Flaw::DuplicateKey { what, key },
            })
        }
    }
}

/// The first characters of `text`.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS).collect()
}
