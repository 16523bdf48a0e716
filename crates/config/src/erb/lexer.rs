//! Ruby's tokens.
//!
//! Ruby's lexer depends on what came before (`/` divides or begins a regular expression, `?` asks or quotes a character);
//! the same two questions decide here: does the previous token end a value, and where are the blanks.

mod strings;

use std::collections::HashSet;

use super::template::{OUT_CLOSE, OUT_OPEN, TEXT};

/// Why code was not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    /// Offset in the compiled program.
    pub(super) at: usize,
    pub(super) what: String,
    /// Valid Ruby (as far as we can tell) that is not evaluated natively.
    pub(super) unsupported: bool,
}

impl Trouble {
    pub(super) fn syntax(at: usize, what: impl Into<String>) -> Self {
        Self {
            at,
            what: what.into(),
            unsupported: false,
        }
    }

    pub(super) fn unsupported(at: usize, what: impl Into<String>) -> Self {
        Self {
            at,
            what: what.into(),
            unsupported: true,
        }
    }
}

/// Part of a string: text, or the tokens of an interpolation.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum RawPiece {
    Text(String),
    Code(Vec<Token>),
}

/// What a token is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Tok {
    Int(i64),
    Float(f64),
    Str(Vec<RawPiece>),
    Command(Vec<RawPiece>),
    Regex(Vec<RawPiece>, String),
    Symbol(Vec<RawPiece>),
    /// `%w[…]` and `%W[…]`.
    Words(Vec<Vec<RawPiece>>),
    /// `%i[…]`.
    Symbols(Vec<String>),
    Ident(String),
    Const(String),
    Instance(String),
    Global(String),
    /// `name:` in a hash or an argument list.
    Label(String),
    /// `"text":` likewise.
    StrLabel(Vec<RawPiece>),
    Keyword(&'static str),
    Op(&'static str),
    Newline,
    Text(usize),
    OutOpen,
    OutClose,
    End,
}

/// A token, where it stands, and whether blanks surround it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) tok: Tok,
    pub(super) at: usize,
    pub(super) space_before: bool,
    pub(super) space_after: bool,
}

const KEYWORDS: &[&str] = &[
    "__FILE__", "__LINE__", "alias", "and", "begin", "break", "case", "class", "def", "defined?", "do",
    "else", "elsif", "end", "ensure", "false", "for", "if", "in", "module", "next", "nil", "not", "or",
    "redo", "rescue", "retry", "return", "self", "super", "then", "true", "undef", "unless", "until", "when",
    "while", "yield",
];

/// Longest first.
const OPERATORS: &[&str] = &[
    "**=", "<=>", "===", "...", "<<=", ">>=", "&&=", "||=", "&.", "**", "==", "!=", ">=", "<=", "&&", "||",
    "=~", "!~", "..", "::", "+=", "-=", "*=", "/=", "%=", "|=", "&=", "^=", "<<", ">>", "->", "=>", "+", "-",
    "*", "/", "%", "<", ">", "!", "=", "?", ":", ".", ",", "(", ")", "[", "]", "{", "}", "|", "&", "^", "~",
];

/// Interpolations inside interpolations end here.
const MAX_NESTING: usize = 16;

/// Cuts a program into tokens.
pub(super) fn tokens(code: &str) -> Result<Vec<Token>, Trouble> {
    let mut lexer = Lexer::new(code, 0);
    lexer.run(false)?;
    let at = lexer.pos;
    lexer.push(Tok::Newline, at, false);
    lexer.push(Tok::End, at, false);
    Ok(lexer.out)
}

struct Lexer<'s> {
    code: &'s str,
    pos: usize,
    out: Vec<Token>,
    /// Where the next line begins when here-documents follow this one.
    heredoc_end: Option<usize>,
    /// Open `? :`.
    ternaries: usize,
    /// Names that were assigned: `x /2` divides, `puts /2/` does not.
    locals: HashSet<String>,
    nesting: usize,
    /// Set inside a dedented here-document, whose offsets are not those of the program.
    fixed_at: Option<usize>,
}

impl<'s> Lexer<'s> {
    fn new(code: &'s str, nesting: usize) -> Self {
        Self {
            code,
            pos: 0,
            out: Vec::new(),
            heredoc_end: None,
            ternaries: 0,
            locals: HashSet::new(),
            nesting,
            fixed_at: None,
        }
    }

    fn rest(&self) -> &'s str {
        &self.code[self.pos..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn peek_at(&self, offset: usize) -> Option<u8> {
        self.code.as_bytes().get(self.pos + offset).copied()
    }

    fn bump(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.pos += next.len_utf8();
        Some(next)
    }

    fn here(&self, at: usize) -> usize {
        self.fixed_at.unwrap_or(at)
    }

    fn push(&mut self, tok: Tok, at: usize, space_before: bool) {
        let space_after = self.peek().is_none_or(char::is_whitespace);
        self.out.push(Token {
            tok,
            at: self.here(at),
            space_before,
            space_after,
        });
    }

    /// Lexes to the end, or to the `}` that closes an interpolation.
    fn run(&mut self, interpolation: bool) -> Result<(), Trouble> {
        let mut braces = 0usize;
        loop {
            let space = self.skip_blanks();
            let at = self.pos;
            let Some(next) = self.peek() else {
                return if interpolation {
                    Err(Trouble::syntax(self.here(at), "unterminated #{…} in a string"))
                } else {
                    Ok(())
                };
            };
            match next {
                '\n' => {
                    self.pos = self.heredoc_end.take().unwrap_or(self.pos + 1);
                    if !self.line_continues() {
                        self.push(Tok::Newline, at, space);
                    }
                }
                ';' => {
                    self.pos += 1;
                    self.push(Tok::Newline, at, space);
                }
                '{' => {
                    braces += 1;
                    self.operator(space)?;
                }
                '}' if interpolation && braces == 0 => {
                    self.pos += 1;
                    return Ok(());
                }
                '}' => {
                    braces = braces.saturating_sub(1);
                    self.operator(space)?;
                }
                TEXT => self.text_mark(at)?,
                OUT_OPEN => {
                    self.bump();
                    self.push(Tok::OutOpen, at, space);
                }
                OUT_CLOSE => {
                    self.bump();
                    self.push(Tok::OutClose, at, space);
                }
                '0'..='9' => self.number(space)?,
                '"' => self.quoted('"', true, space)?,
                '\'' => self.quoted('\'', false, space)?,
                '`' if !self.after_dot() => {
                    self.pos += 1;
                    let pieces = self.string_body(None, '`', true, false)?;
                    self.push(Tok::Command(pieces), at, space);
                }
                '@' => self.instance(space)?,
                '$' => self.global(space)?,
                ':' => self.colon(space)?,
                '?' if self.wants_value(space) && self.character(space) => {}
                '/' if self.wants_value(space) => {
                    self.pos += 1;
                    self.regex(None, '/', at, space)?;
                }
                '%' if self.wants_value(space) && self.percent(space)? => {}
                '<' if self.rest().starts_with("<<") && self.heredoc(space)? => {}
                _ if next.is_alphabetic() || next == '_' => self.word(space),
                _ => self.operator(space)?,
            }
        }
    }

    /// Skips blanks, comments and escaped newlines; tells whether there were any.
    fn skip_blanks(&mut self) -> bool {
        let start = self.pos;
        loop {
            match self.peek() {
                Some(' ' | '\t' | '\r' | '\u{b}' | '\u{c}') => self.pos += 1,
                Some('\\') if self.rest().starts_with("\\\n") => self.pos += 2,
                Some('\\') if self.rest().starts_with("\\\r\n") => self.pos += 3,
                Some('#') => self.pos += self.rest().find('\n').unwrap_or(self.rest().len()),
                Some('=') if self.rest().starts_with("=begin") && self.at_line_start() => {
                    self.pos += self
                        .rest()
                        .find("\n=end")
                        .map_or(self.rest().len(), |end| end + "\n=end".len());
                    self.pos += self.rest().find('\n').unwrap_or(self.rest().len());
                }
                _ => return self.pos > start,
            }
        }
    }

    fn at_line_start(&self) -> bool {
        self.pos == 0 || self.code.as_bytes()[self.pos - 1] == b'\n'
    }

    /// Whether the next line goes on with `.method`, `&.method` or follows comments that do.
    fn line_continues(&self) -> bool {
        let mut rest = self.rest();
        loop {
            rest = rest.trim_start_matches([' ', '\t', '\r']);
            if let Some(comment) = rest.strip_prefix('#') {
                let Some(end) = comment.find('\n') else {
                    return false;
                };
                rest = &comment[end + 1..];
                continue;
            }
            return rest.starts_with("&.") || rest.starts_with('.') && !rest.starts_with("..");
        }
    }

    fn after_dot(&self) -> bool {
        matches!(self.out.last().map(|token| &token.tok), Some(Tok::Op("." | "&.")))
    }

    /// Whether a value may begin here.
    fn wants_value(&self, space: bool) -> bool {
        let Some(last) = self.out.last() else { return true };
        match &last.tok {
            Tok::Ident(name) => {
                // `puts /x/` against `total / 2` and `total /2`.
                let blank_follows = matches!(self.peek_at(1), None | Some(b' ' | b'\t' | b'\n' | b'='));
                space && !blank_follows && !self.locals.contains(name)
            }
            Tok::Int(_)
            | Tok::Float(_)
            | Tok::Str(_)
            | Tok::Command(_)
            | Tok::Regex(..)
            | Tok::Symbol(_)
            | Tok::Words(_)
            | Tok::Symbols(_)
            | Tok::Const(_)
            | Tok::Instance(_)
            | Tok::Global(_)
            | Tok::Op(")" | "]" | "}")
            | Tok::Keyword("end" | "self" | "true" | "false" | "nil" | "__FILE__" | "__LINE__") => false,
            _ => true,
        }
    }

    fn text_mark(&mut self, at: usize) -> Result<(), Trouble> {
        self.bump();
        let digits = self.rest().find(TEXT).unwrap_or(0);
        let index = self.rest()[..digits].parse();
        self.pos += digits;
        self.bump();
        let index = index.map_err(|_| Trouble::syntax(self.here(at), "stray mark"))?;
        self.push(Tok::Text(index), at, true);
        Ok(())
    }

    fn number(&mut self, space: bool) -> Result<(), Trouble> {
        let at = self.pos;
        let rest = self.rest();
        let lower = rest.get(..2).map(str::to_ascii_lowercase);
        let (radix, skip) = match lower.as_deref() {
            Some("0x") => (16, 2),
            Some("0b") => (2, 2),
            Some("0o") => (8, 2),
            Some("0d") => (10, 2),
            Some(two) if two.starts_with('0') && matches!(two.as_bytes()[1], b'0'..=b'9' | b'_') => (8, 1),
            _ => (10, 0),
        };
        let length = rest[skip..]
            .find(|c: char| !(c.is_digit(radix) || c == '_'))
            .unwrap_or(rest.len() - skip);
        let digits: String = rest[skip..skip + length].chars().filter(|c| *c != '_').collect();
        self.pos += skip + length;
        if radix == 10 && skip == 0 {
            let fraction = self.rest();
            let mut float = digits.clone();
            let is_digit = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_digit());
            let mut is_float = false;
            if fraction.starts_with('.') && is_digit(self.peek_at(1)) {
                let end = fraction[1..]
                    .find(|c: char| !(c.is_ascii_digit() || c == '_'))
                    .map_or(fraction.len(), |end| end + 1);
                float.extend(fraction[..end].chars().filter(|c| *c != '_'));
                self.pos += end;
                is_float = true;
            }
            let sign = usize::from(matches!(self.peek_at(1), Some(b'+' | b'-')));
            if matches!(self.peek_at(0), Some(b'e' | b'E')) && is_digit(self.peek_at(1 + sign)) {
                let exponent = self.rest();
                let end = exponent[1 + sign..]
                    .find(|c: char| !c.is_ascii_digit())
                    .map_or(exponent.len(), |end| end + 1 + sign);
                float.push_str(&exponent[..end]);
                self.pos += end;
                is_float = true;
            }
            if is_float {
                let value = float
                    .parse()
                    .map_err(|_| Trouble::syntax(self.here(at), format!("bad number {float}")))?;
                self.push(Tok::Float(value), at, space);
                return Ok(());
            }
        }
        if matches!(self.peek_at(0), Some(b'r' | b'i'))
            && !self.peek_at(1).is_some_and(|b| b.is_ascii_alphanumeric())
        {
            return Err(Trouble::unsupported(
                self.here(at),
                "rational and complex numbers",
            ));
        }
        if digits.is_empty() || self.peek().is_some_and(|c| c.is_ascii_digit()) {
            return Err(Trouble::syntax(self.here(at), "bad number"));
        }
        let value = i64::from_str_radix(&digits, radix)
            .map_err(|_| Trouble::unsupported(self.here(at), "an integer beyond 64 bits"))?;
        self.push(Tok::Int(value), at, space);
        Ok(())
    }

    fn quoted(&mut self, quote: char, interpolate: bool, space: bool) -> Result<(), Trouble> {
        let at = self.pos;
        self.pos += 1;
        let pieces = self.string_body(None, quote, interpolate, false)?;
        if self.rest().starts_with(':')
            && !self.rest().starts_with("::")
            && self.ternaries == 0
            && self.label_may_stand()
        {
            self.pos += 1;
            self.push(Tok::StrLabel(pieces), at, space);
        } else {
            self.push(Tok::Str(pieces), at, space);
        }
        Ok(())
    }

    fn label_may_stand(&self) -> bool {
        matches!(
            self.out.last().map(|token| &token.tok),
            Some(Tok::Op("{" | "," | "(" | "|") | Tok::Ident(_) | Tok::Newline)
        )
    }

    fn instance(&mut self, space: bool) -> Result<(), Trouble> {
        let at = self.pos;
        self.pos += 1;
        if self.peek() == Some('@') {
            return Err(Trouble::unsupported(self.here(at), "class variables"));
        }
        let name = self.take_word();
        if name.is_empty() {
            return Err(Trouble::syntax(self.here(at), "`@` without a name"));
        }
        self.push(Tok::Instance(name), at, space);
        Ok(())
    }

    fn global(&mut self, space: bool) -> Result<(), Trouble> {
        let at = self.pos;
        self.pos += 1;
        let mut name = self.take_word();
        if name.is_empty() {
            name = self.bump().map(String::from).unwrap_or_default();
        }
        self.push(Tok::Global(name), at, space);
        Ok(())
    }

    fn colon(&mut self, space: bool) -> Result<(), Trouble> {
        let at = self.pos;
        let rest = self.rest();
        if rest.starts_with("::") {
            return self.operator(space);
        }
        let next = rest[1..].chars().next();
        // The `:` of `a ? b : c` has a blank after it; `a ? b :c` does not, but there a value has just ended.
        if self.ternaries > 0 && !self.wants_value(false) && (next.is_none_or(char::is_whitespace) || !space)
        {
            return self.operator(space);
        }
        match next {
            Some('"') => {
                self.pos += 2;
                let pieces = self.string_body(None, '"', true, false)?;
                self.push(Tok::Symbol(pieces), at, space);
            }
            Some('\'') => {
                self.pos += 2;
                let pieces = self.string_body(None, '\'', false, false)?;
                self.push(Tok::Symbol(pieces), at, space);
            }
            Some(c) if c.is_alphabetic() || c == '_' => {
                self.pos += 1;
                let mut name = self.take_word();
                if matches!(self.peek(), Some('?' | '!' | '='))
                    && !matches!(self.peek_at(1), Some(b'>' | b'=' | b'~'))
                {
                    name.extend(self.bump());
                }
                self.push(Tok::Symbol(vec![RawPiece::Text(name)]), at, space);
            }
            Some('@') => {
                self.pos += 2;
                let name = format!("@{}", self.take_word());
                self.push(Tok::Symbol(vec![RawPiece::Text(name)]), at, space);
            }
            _ => {
                const METHODS: &[&str] = &[
                    "[]=", "[]", "<=>", "===", "==", "=~", "!=", "**", "<<", ">>", "<=", ">=", "+", "-", "*",
                    "/", "%", "<", ">", "!", "&", "|", "^",
                ];
                let operator = METHODS.iter().find(|method| rest[1..].starts_with(**method));
                match operator {
                    Some(method) if self.wants_value(space) => {
                        self.pos += 1 + method.len();
                        self.push(Tok::Symbol(vec![RawPiece::Text((*method).to_owned())]), at, space);
                    }
                    _ => return self.operator(space),
                }
            }
        }
        Ok(())
    }

    fn take_word(&mut self) -> String {
        let rest = self.rest();
        let length = rest
            .find(|c: char| !(c.is_alphanumeric() || c == '_'))
            .unwrap_or(rest.len());
        self.pos += length;
        rest[..length].to_owned()
    }

    fn word(&mut self, space: bool) {
        let at = self.pos;
        let mut name = self.take_word();
        if self.peek() == Some('?') && name == "defined" {
            self.pos += 1;
            self.push(Tok::Keyword("defined?"), at, space);
            return;
        }
        if matches!(self.peek(), Some('?' | '!')) {
            let next = self.peek_at(1);
            let operator = next == Some(b'=') && !matches!(self.peek_at(2), Some(b'=' | b'~' | b'>'));
            // `x ?a : b` written as `flag?"a":"b"` is read by Ruby as a method too.
            if !operator {
                name.extend(self.bump());
            }
        }
        let after_dot = self.after_dot();
        let after_def = matches!(self.out.last().map(|token| &token.tok), Some(Tok::Keyword("def")));
        let label = self.peek() == Some(':')
            && self.peek_at(1) != Some(b':')
            && !after_dot
            && (self.ternaries == 0 || self.label_may_stand() && !matches!(self.peek_at(1), Some(b' ')));
        if label {
            self.pos += 1;
            self.push(Tok::Label(name), at, space);
            return;
        }
        let keyword = KEYWORDS.iter().find(|keyword| **keyword == name);
        let tok = match keyword {
            Some(keyword) if !after_dot && (!after_def || *keyword == "self") => Tok::Keyword(keyword),
            _ if name.chars().next().is_some_and(char::is_uppercase) && !name.ends_with(['?', '!']) => {
                Tok::Const(name)
            }
            _ => {
                self.note_local(&name);
                Tok::Ident(name)
            }
        };
        self.push(tok, at, space);
    }

    /// Remembers names that are assigned or block parameters.
    fn note_local(&mut self, name: &str) {
        let rest = self.rest().trim_start_matches([' ', '\t']);
        let assigned = rest.starts_with('=')
            && !rest.starts_with("==")
            && !rest.starts_with("=~")
            && !rest.starts_with("=>");
        let op_assigned = ["+=", "-=", "||=", "&&=", "*=", "/=", "<<="]
            .iter()
            .any(|op| rest.starts_with(op));
        let parameter = matches!(
            self.out.last().map(|token| &token.tok),
            Some(Tok::Op("|" | "," | "*" | "&"))
        ) && (rest.starts_with('|') || rest.starts_with(','));
        if assigned || op_assigned || parameter {
            self.locals.insert(name.to_owned());
        }
    }

    fn operator(&mut self, space: bool) -> Result<(), Trouble> {
        let at = self.pos;
        let Some(operator) = OPERATORS
            .iter()
            .find(|operator| self.rest().starts_with(**operator))
        else {
            let found = self.peek().unwrap_or('?');
            return Err(Trouble::syntax(self.here(at), format!("unexpected {found:?}")));
        };
        self.pos += operator.len();
        match *operator {
            "?" => self.ternaries += 1,
            ":" => self.ternaries = self.ternaries.saturating_sub(1),
            _ => {}
        }
        self.push(Tok::Op(operator), at, space);
        Ok(())
    }
}
