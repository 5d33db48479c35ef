//! Cuts a filter into tokens.

use std::fmt;

use super::{FilterError, problem};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// A field, or a value without quotes.
    Word(String),
    /// A quoted string, resolved, and its quote.
    Quoted(char, String),
    Operator(String),
    Dot,
    Comma,
    End,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => write!(f, "{word:?}"),
            Self::Quoted(quote, text) => write!(f, "{quote}{text}{quote}"),
            Self::Operator(operator) => write!(f, "{operator:?}"),
            Self::Dot => write!(f, "a dot"),
            Self::Comma => write!(f, "a comma"),
            Self::End => write!(f, "the end"),
        }
    }
}

pub(super) struct Scanner<'f> {
    filter: &'f str,
    at: usize,
}

impl<'f> Scanner<'f> {
    pub(super) const fn new(filter: &'f str) -> Self {
        Self { filter, at: 0 }
    }

    pub(super) fn problem(&self, message: impl Into<String>) -> FilterError {
        problem(self.filter, self.at, message)
    }

    fn peek(&self) -> Option<char> {
        self.filter[self.at..].chars().next()
    }

    fn take(&mut self) -> Option<char> {
        let next = self.peek();
        self.at += next.map_or(0, char::len_utf8);
        next
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> String {
        let start = self.at;
        while self.peek().is_some_and(&wanted) {
            self.take();
        }
        self.filter[start..self.at].to_owned()
    }

    /// The next token where a field, an operator or a separator may stand.
    pub(super) fn next(&mut self) -> Result<Token, FilterError> {
        self.token(|c| c.is_ascii_alphanumeric() || c == '_')
    }

    /// The next token where a value may stand.
    pub(super) fn next_value(&mut self) -> Result<Token, FilterError> {
        self.token(|c| c != ',' && !c.is_whitespace() && !c.is_control())
    }

    fn token(&mut self, in_word: impl Fn(char) -> bool) -> Result<Token, FilterError> {
        self.take_while(char::is_whitespace);
        let Some(first) = self.peek() else { return Ok(Token::End) };
        match first {
            '"' | '/' | '|' => self.quoted(first),
            '=' | '!' | '~' => Ok(Token::Operator(self.take_while(|c| matches!(c, '=' | '!' | '~')))),
            '.' => {
                self.take();
                Ok(Token::Dot)
            }
            ',' => {
                self.take();
                Ok(Token::Comma)
            }
            c if in_word(c) => Ok(Token::Word(self.take_while(in_word))),
            c => Err(self.problem(format!("unexpected {c:?}"))),
        }
    }

    fn quoted(&mut self, quote: char) -> Result<Token, FilterError> {
        self.take();
        let mut text = Vec::new();
        loop {
            match self.take() {
                None | Some('\n') => return Err(self.problem("quoted string is not terminated")),
                Some(c) if c == quote => break,
                Some('\\') => self.escape(quote, &mut text)?,
                Some(c) => text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        let text = String::from_utf8(text).map_err(|_| self.problem("quoted string is not UTF-8"))?;
        Ok(Token::Quoted(quote, text))
    }

    /// Go's escapes: `\x` and octal ones are bytes, `\u` and `\U` are characters.
    fn escape(&mut self, quote: char, text: &mut Vec<u8>) -> Result<(), FilterError> {
        let byte = match self.take() {
            Some('a') => 0x07,
            Some('b') => 0x08,
            Some('f') => 0x0c,
            Some('n') => b'\n',
            Some('r') => b'\r',
            Some('t') => b'\t',
            Some('v') => 0x0b,
            Some('\\') => b'\\',
            Some(c) if c == quote => c as u8,
            Some('x') => self.number(16, 2)?.try_into().map_err(|_| self.problem("escape out of range"))?,
            Some(digit @ '0'..='7') => {
                self.at -= digit.len_utf8();
                self.number(8, 3)?.try_into().map_err(|_| self.problem("octal escape above 255"))?
            }
            Some(width @ ('u' | 'U')) => {
                let number = self.number(16, if width == 'u' { 4 } else { 8 })?;
                let c = char::from_u32(number).ok_or_else(|| self.problem("escape is no character"))?;
                text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return Err(self.problem("illegal escape sequence")),
        };
        text.push(byte);
        Ok(())
    }

    fn number(&mut self, base: u32, digits: usize) -> Result<u32, FilterError> {
        let mut number: u32 = 0;
        for _ in 0..digits {
            let digit = self.take().and_then(|c| c.to_digit(base));
            let digit = digit.ok_or_else(|| self.problem("illegal numeric escape sequence"))?;
            number = number.wrapping_mul(base).wrapping_add(digit);
        }
        Ok(number)
    }
}
