//! Method calls: arguments, blocks, parameters.

use std::rc::Rc;

use super::{
    Body, Call, Kind, Node, Pair, Param, Parsed, Parser, Piece, RawPiece, Rescue, Tok, Trouble, bare, call,
    describe, node,
};

impl Parser<'_> {
    /// Method calls, indexes and constants after a value.
    pub(super) fn postfix(&mut self, mut value: Node) -> Parsed {
        loop {
            let token = self.token();
            match &token.tok {
                Tok::Op(op @ ("." | "&.")) => {
                    self.next();
                    self.skip_newlines();
                    value = self.method_call(value, *op == "&.")?;
                }
                Tok::Op("::") if !token.space_before || !token.space_after => {
                    self.next();
                    match self.peek() {
                        Tok::Const(name)
                            if !matches!(self.peek_next(), Tok::Op("("))
                                || self.tokens[self.pos + 1].space_before =>
                        {
                            let at = self.at();
                            self.next();
                            value = node(Kind::Constant(Some(Box::new(value)), name.clone()), at);
                        }
                        _ => value = self.method_call(value, false)?,
                    }
                }
                Tok::Op("[") if !token.space_before || !is_open_call(&value) => {
                    let at = token.at;
                    self.next();
                    let args = self.bracketed(|p| p.arguments("]"))?;
                    value = call(Some(value), "[]", args, at);
                }
                _ => return Ok(value),
            }
        }
    }

    pub(super) fn method_call(&mut self, receiver: Node, safe: bool) -> Parsed {
        let at = self.at();
        let name = match self.next() {
            Tok::Ident(name) | Tok::Const(name) => name.clone(),
            Tok::Op("(") => {
                self.pos -= 1;
                "call".to_owned()
            }
            Tok::Op(op @ ("+" | "-" | "*" | "/" | "%" | "==" | "<" | ">" | "<<" | "!" | "<=>")) => {
                (*op).to_owned()
            }
            Tok::Keyword("class") => "class".to_owned(),
            other => {
                return Err(Trouble::syntax(
                    at,
                    format!("unexpected {} after `.'", describe(other)),
                ));
            }
        };
        let (args, block) = self.call_rest(false)?;
        Ok(node(
            Kind::Call(Call {
                receiver: Some(Box::new(receiver)),
                name,
                args,
                block,
                safe,
                bare: false,
            }),
            at,
        ))
    }

    /// Arguments in parentheses or without, then a block.
    pub(super) fn call_rest(&mut self, is_local: bool) -> Result<(Vec<Node>, Option<Rc<Body>>), Trouble> {
        let mut args = Vec::new();
        if self.is_op("(") && !self.token().space_before {
            self.next();
            args = self.bracketed(|p| p.arguments(")"))?;
        } else if !is_local && self.starts_command_argument() {
            let outer = std::mem::replace(&mut self.no_do, true);
            let parsed = self.command_arguments();
            self.no_do = outer;
            args = parsed?;
        }
        let block = if is_local { None } else { self.block()? };
        Ok((args, block))
    }

    pub(super) fn starts_command_argument(&self) -> bool {
        let token = self.token();
        if !token.space_before {
            return false;
        }
        match &token.tok {
            Tok::Int(_)
            | Tok::Float(_)
            | Tok::Str(_)
            | Tok::Command(_)
            | Tok::Regex(..)
            | Tok::Symbol(_)
            | Tok::Words(_)
            | Tok::Symbols(_)
            | Tok::Ident(_)
            | Tok::Const(_)
            | Tok::Instance(_)
            | Tok::Global(_)
            | Tok::Label(_)
            | Tok::StrLabel(_)
            | Tok::Op("->" | "!")
            | Tok::Keyword(
                "nil" | "true" | "false" | "self" | "not" | "defined?" | "__FILE__" | "__LINE__" | "case",
            ) => true,
            Tok::Op("(") => true,
            Tok::Op("[") => true,
            Tok::Op("-" | "*" | "&" | "**" | "::") => !token.space_after,
            _ => false,
        }
    }

    pub(super) fn command_arguments(&mut self) -> Result<Vec<Node>, Trouble> {
        let mut list = Arguments::default();
        loop {
            self.argument(&mut list)?;
            if !self.eat_op(",") {
                return Ok(list.finish());
            }
            self.skip_newlines();
        }
    }

    /// Arguments up to the closing bracket, which is consumed.
    pub(super) fn arguments(&mut self, close: &str) -> Result<Vec<Node>, Trouble> {
        let mut list = Arguments::default();
        loop {
            self.skip_newlines();
            if self.eat_op(close) {
                return Ok(list.finish());
            }
            self.argument(&mut list)?;
            self.skip_newlines();
            if self.eat_op(close) {
                return Ok(list.finish());
            }
            if !self.eat_op(",") {
                return Err(self.unexpected(&format!("`{close}'")));
            }
        }
    }

    fn argument(&mut self, list: &mut Arguments) -> Result<(), Trouble> {
        let at = self.at();
        match self.peek() {
            Tok::Op("*") => {
                self.next();
                let value = self.ternary()?;
                list.plain.push(node(Kind::Splat(Box::new(value)), at));
            }
            Tok::Op("**") => {
                self.next();
                let value = self.ternary()?;
                list.pair(Pair::Splat(value), at);
            }
            Tok::Op("&") => {
                self.next();
                let value = self.ternary()?;
                list.plain.push(node(Kind::BlockPass(Box::new(value)), at));
            }
            Tok::Label(_) | Tok::StrLabel(_) => {
                let pair = self.labelled()?;
                list.pair(pair, at);
            }
            _ => {
                let value = self.not_expression()?;
                if self.eat_op("=>") {
                    self.skip_newlines();
                    let right = self.expression()?;
                    list.pair(Pair::Entry(value, right), at);
                } else {
                    list.plain.push(value);
                }
            }
        }
        Ok(())
    }

    /// `name: value`, `"text": value` and `name:` alone.
    pub(super) fn labelled(&mut self) -> Result<Pair, Trouble> {
        let at = self.at();
        let key = match self.next() {
            Tok::Label(name) => vec![Piece::Text(name.clone())],
            Tok::StrLabel(pieces) => self.pieces(pieces)?,
            other => return Err(Trouble::syntax(at, format!("unexpected {}", describe(other)))),
        };
        if let (Tok::Op("," | "}" | ")"), [Piece::Text(name)]) = (self.peek(), key.as_slice()) {
            let value = bare(name, at);
            return Ok(Pair::Entry(node(Kind::Symbol(key), at), value));
        }
        self.skip_newlines();
        let value = self.expression()?;
        Ok(Pair::Entry(node(Kind::Symbol(key), at), value))
    }

    pub(super) fn block(&mut self) -> Result<Option<Rc<Body>>, Trouble> {
        let close = match self.peek() {
            Tok::Op("{") => "}",
            Tok::Keyword("do") if !self.no_do => "end",
            _ => return Ok(None),
        };
        let at = self.at();
        self.next();
        let known = self.locals.clone();
        let body = self.bracketed(|p| {
            p.deeper(|p| {
                let mut params = Vec::new();
                p.skip_newlines();
                if p.eat_op("|") {
                    params = p.params("|")?;
                } else {
                    p.eat_op("||");
                }
                let body = if close == "}" {
                    let body = p.statements(&[])?;
                    p.expect_op("}")?;
                    body
                } else {
                    let body = p.body_with_rescue()?;
                    p.expect_end(at)?;
                    body
                };
                Ok(Body { params, body })
            })
        })?;
        self.locals = known;
        Ok(Some(Rc::new(body)))
    }

    /// Parameters up to `close`, which is consumed.
    pub(super) fn params(&mut self, close: &str) -> Result<Vec<Param>, Trouble> {
        let mut params = Vec::new();
        loop {
            self.skip_newlines_in(close);
            if self.eat_op(close) {
                return Ok(params);
            }
            params.push(self.param(close)?);
            self.skip_newlines_in(close);
            if matches!(self.peek(), Tok::Newline) && close == "|" {
                // `|a; b|` declares b.
                self.next();
                while let Tok::Ident(name) = self.peek() {
                    self.locals.insert(name.clone());
                    self.next();
                    self.eat_op(",");
                }
            }
            if self.eat_op(close) {
                return Ok(params);
            }
            if !self.eat_op(",") {
                return Err(self.unexpected(&format!("`{close}'")));
            }
        }
    }

    pub(super) fn skip_newlines_in(&mut self, close: &str) {
        if close == ")" {
            self.skip_newlines();
        }
    }

    pub(super) fn param(&mut self, close: &str) -> Result<Param, Trouble> {
        let at = self.at();
        let param = match self.next() {
            Tok::Ident(name) => {
                self.locals.insert(name.clone());
                if self.eat_op("=") {
                    // `|` closes the list, so a default may not use it.
                    let value = if close == "|" {
                        self.binary(8)?
                    } else {
                        self.ternary()?
                    };
                    Param::Optional(name.clone(), value)
                } else {
                    Param::Required(name.clone())
                }
            }
            Tok::Label(name) => {
                self.locals.insert(name.clone());
                let value = match self.peek() {
                    Tok::Op("," | ")" | "|") | Tok::Newline => None,
                    _ if close == "|" => Some(self.binary(8)?),
                    _ => Some(self.ternary()?),
                };
                Param::Keyword(name.clone(), value)
            }
            Tok::Op("*") => Param::Rest(self.optional_name()),
            Tok::Op("**") => Param::KeywordRest(self.optional_name()),
            Tok::Op("&") => Param::Block(self.optional_name()),
            Tok::Op("(") => Param::Nested(self.params(")")?),
            other => {
                return Err(Trouble::syntax(
                    at,
                    format!("unexpected {} among parameters", describe(other)),
                ));
            }
        };
        Ok(param)
    }

    pub(super) fn optional_name(&mut self) -> String {
        if let Tok::Ident(name) = self.peek() {
            self.next();
            self.locals.insert(name.clone());
            return name.clone();
        }
        String::new()
    }

    /// Statements with optional `rescue`, `else` and `ensure`, up to `end`.
    pub(super) fn body_with_rescue(&mut self) -> Parsed {
        let at = self.at();
        let ends = ["rescue", "else", "ensure", "end"];
        let body = self.statements(&ends)?;
        let mut rescues = Vec::new();
        while self.eat_keyword("rescue") {
            let mut classes = Vec::new();
            let mut name = None;
            while !matches!(self.peek(), Tok::Newline | Tok::Keyword("then") | Tok::End) {
                if self.eat_op("=>") {
                    name = Some(self.optional_name());
                    break;
                }
                classes.push(self.ternary()?);
                self.eat_op(",");
            }
            self.eat_keyword("then");
            let body = self.statements(&ends)?;
            rescues.push(Rescue { classes, name, body });
        }
        let otherwise = match self.eat_keyword("else") {
            true => Some(Box::new(self.statements(&ends)?)),
            false => None,
        };
        let ensure = match self.eat_keyword("ensure") {
            true => Some(Box::new(self.statements(&ends)?)),
            false => None,
        };
        if rescues.is_empty() && otherwise.is_none() && ensure.is_none() {
            return Ok(body);
        }
        Ok(node(
            Kind::Begin {
                body: Box::new(body),
                rescues,
                otherwise,
                ensure,
            },
            at,
        ))
    }

    pub(super) fn pieces(&mut self, raw: &[RawPiece]) -> Result<Vec<Piece>, Trouble> {
        let mut pieces = Vec::with_capacity(raw.len());
        for piece in raw {
            pieces.push(match piece {
                RawPiece::Text(text) => Piece::Text(text.clone()),
                RawPiece::Code(tokens) => {
                    let mut inner = Parser {
                        tokens,
                        pos: 0,
                        locals: self.locals.clone(),
                        no_do: false,
                        depth: self.depth,
                    };
                    let code = inner.deeper(|p| p.statements(&[]))?;
                    if !matches!(inner.peek(), Tok::End) {
                        return Err(inner.unexpected("the end of #{…}"));
                    }
                    Piece::Code(code)
                }
            });
        }
        Ok(pieces)
    }
}

/// Arguments being collected: `a: 1` and `a => 1` gather in one hash at the end.
#[derive(Default)]
struct Arguments {
    plain: Vec<Node>,
    pairs: Vec<Pair>,
    pairs_at: usize,
}

impl Arguments {
    fn pair(&mut self, pair: Pair, at: usize) {
        if self.pairs.is_empty() {
            self.pairs_at = at;
        }
        self.pairs.push(pair);
    }

    fn finish(mut self) -> Vec<Node> {
        if !self.pairs.is_empty() {
            let hash = node(Kind::Hash(self.pairs), self.pairs_at);
            let block = match self.plain.last() {
                Some(Node {
                    kind: Kind::BlockPass(_),
                    ..
                }) => self.plain.pop(),
                _ => None,
            };
            self.plain.push(hash);
            self.plain.extend(block);
        }
        self.plain
    }
}

/// A method call without arguments so far: `x [1]` would then pass an argument, not index.
fn is_open_call(value: &Node) -> bool {
    matches!(&value.kind, Kind::Call(call) if call.receiver.is_none() && !call.bare && call.args.is_empty())
}
