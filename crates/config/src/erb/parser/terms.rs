//! Literals, names, and what begins with a keyword.

use std::rc::Rc;

use super::{Body, Call, Kind, Pair, Parsed, Parser, Piece, Target, Tok, Trouble, call_kind, describe, node};

impl Parser<'_> {
    pub(super) fn primary(&mut self) -> Parsed {
        let token = self.token();
        let at = token.at;
        self.next();
        let kind = match &token.tok {
            Tok::Int(value) => Kind::Int(*value),
            Tok::Float(value) => Kind::Float(*value),
            Tok::Str(raw) => {
                let mut pieces = self.pieces(raw)?;
                // Adjacent literals are one string.
                while let Tok::Str(more) = self.peek() {
                    self.next();
                    pieces.extend(self.pieces(more)?);
                }
                Kind::Str(pieces)
            }
            Tok::Command(raw) => Kind::Command(self.pieces(raw)?),
            Tok::Regex(raw, flags) => Kind::Regex(self.pieces(raw)?, flags.clone()),
            Tok::Symbol(raw) => Kind::Symbol(self.pieces(raw)?),
            Tok::Words(words) => {
                let mut list = Vec::new();
                for word in words {
                    list.push(node(Kind::Str(self.pieces(word)?), at));
                }
                Kind::Array(list)
            }
            Tok::Symbols(names) => Kind::Array(
                names
                    .iter()
                    .map(|name| node(Kind::Symbol(vec![Piece::Text(name.clone())]), at))
                    .collect(),
            ),
            Tok::Instance(name) => Kind::Instance(name.clone()),
            Tok::Global(name) => Kind::Global(name.clone()),
            Tok::Ident(name) => return self.identifier(name, at),
            Tok::Const(name) => {
                let call_follows = self.is_op("(") && !self.token().space_before
                    || matches!(self.peek(), Tok::Str(_)) && self.token().space_before;
                if call_follows {
                    let (args, block) = self.call_rest(false)?;
                    Kind::Call(Call {
                        receiver: None,
                        name: name.clone(),
                        args,
                        block,
                        safe: false,
                        bare: false,
                    })
                } else {
                    Kind::Constant(None, name.clone())
                }
            }
            Tok::Keyword(keyword) => return self.keyword(keyword, at),
            Tok::Op("::") => match self.next() {
                Tok::Const(name) => Kind::Constant(None, name.clone()),
                _ => return Err(Trouble::syntax(at, "unexpected `::'")),
            },
            Tok::Op("(") => {
                let inner = self.bracketed(|p| p.statements(&[]))?;
                self.expect_op(")")?;
                if let Kind::Sequence(list) = &inner.kind
                    && list.is_empty()
                {
                    return Ok(node(Kind::Nil, at));
                }
                return Ok(node(Kind::Sequence(vec![inner]), at));
            }
            Tok::Op("[") => Kind::Array(self.bracketed(|p| p.arguments("]"))?),
            Tok::Op("{") => return self.bracketed(|p| p.hash(at)),
            Tok::Op("->") => return self.arrow(at),
            Tok::Label(name) => {
                return Err(Trouble::syntax(at, format!("unexpected label `{name}:'")));
            }
            other => return Err(Trouble::syntax(at, format!("unexpected {}", describe(other)))),
        };
        Ok(node(kind, at))
    }

    pub(super) fn identifier(&mut self, name: &str, at: usize) -> Parsed {
        let is_local = self.locals.contains(name) && (!self.is_op("(") || self.token().space_before);
        if matches!(name, "lambda" | "proc") && !is_local {
            return match self.block()? {
                Some(body) => Ok(node(Kind::Lambda(body), at)),
                None => Err(Trouble::unsupported(at, format!("`{name}' without a block"))),
            };
        }
        if name == "loop" && !is_local {
            let block = self
                .block()?
                .ok_or_else(|| Trouble::unsupported(at, "`loop' without a block"))?;
            return Ok(node(
                Kind::Call(Call {
                    receiver: None,
                    name: name.to_owned(),
                    args: Vec::new(),
                    block: Some(block),
                    safe: false,
                    bare: false,
                }),
                at,
            ));
        }
        let parens = self.is_op("(") && !self.token().space_before;
        let (args, block) = self.call_rest(is_local)?;
        let bare = args.is_empty() && block.is_none() && !parens;
        Ok(node(
            Kind::Call(Call {
                receiver: None,
                name: name.to_owned(),
                args,
                block,
                safe: false,
                bare,
            }),
            at,
        ))
    }

    pub(super) fn hash(&mut self, at: usize) -> Parsed {
        let mut pairs = Vec::new();
        loop {
            self.skip_newlines();
            if self.eat_op("}") {
                return Ok(node(Kind::Hash(pairs), at));
            }
            match self.peek() {
                Tok::Label(_) | Tok::StrLabel(_) => pairs.push(self.labelled()?),
                Tok::Op("**") => {
                    self.next();
                    pairs.push(Pair::Splat(self.ternary()?));
                }
                _ => {
                    let key = self.expression()?;
                    self.skip_newlines();
                    self.expect_op("=>")?;
                    self.skip_newlines();
                    pairs.push(Pair::Entry(key, self.expression()?));
                }
            }
            self.skip_newlines();
            if self.eat_op("}") {
                return Ok(node(Kind::Hash(pairs), at));
            }
            self.expect_op(",")?;
        }
    }

    pub(super) fn arrow(&mut self, at: usize) -> Parsed {
        let known = self.locals.clone();
        let mut params = Vec::new();
        if self.eat_op("(") {
            params = self.params(")")?;
        } else {
            while let Tok::Ident(_) = self.peek() {
                params.push(self.param(")")?);
                if !self.eat_op(",") {
                    break;
                }
            }
        }
        let body = self.bracketed(|p| {
            if p.eat_op("{") {
                let body = p.statements(&[])?;
                p.expect_op("}")?;
                Ok(body)
            } else if p.eat_keyword("do") {
                let body = p.body_with_rescue()?;
                p.expect_end(at)?;
                Ok(body)
            } else {
                Err(p.unexpected("`{'"))
            }
        })?;
        self.locals = known;
        Ok(node(Kind::Lambda(Rc::new(Body { params, body })), at))
    }

    pub(super) fn keyword(&mut self, keyword: &'static str, at: usize) -> Parsed {
        let kind = match keyword {
            "nil" => Kind::Nil,
            "true" => Kind::True,
            "false" => Kind::False,
            "self" => Kind::Myself,
            "__FILE__" => call_kind(None, "__FILE__", Vec::new()),
            "if" | "unless" => return self.conditional(keyword, at),
            "while" | "until" => {
                let condition = Box::new(self.loop_condition()?);
                let body = Box::new(self.bracketed(|p| p.statements(&["end"]))?);
                self.expect_end(at)?;
                Kind::While {
                    condition,
                    body,
                    until: keyword == "until",
                    body_first: false,
                }
            }
            "for" => {
                let mut targets = Vec::new();
                while let Some(target) = self.simple_target() {
                    self.declare(&target);
                    targets.push(target);
                    if !self.eat_op(",") {
                        break;
                    }
                }
                if targets.is_empty() || !self.eat_keyword("in") {
                    return Err(self.unexpected("`in'"));
                }
                let list = Box::new(self.loop_condition()?);
                let body = Box::new(self.bracketed(|p| p.statements(&["end"]))?);
                self.expect_end(at)?;
                let target = match targets.len() {
                    1 => targets.remove(0),
                    _ => Target::Nested(targets),
                };
                Kind::For(Box::new(target), list, body)
            }
            "case" => return self.case(at),
            "begin" => {
                let body = self.bracketed(Self::body_with_rescue)?;
                self.expect_end(at)?;
                match body.kind {
                    Kind::Begin { .. } => return Ok(body),
                    _ => Kind::Begin {
                        body: Box::new(body),
                        rescues: Vec::new(),
                        otherwise: None,
                        ensure: None,
                    },
                }
            }
            "def" => return self.definition(at),
            "module" => {
                let mut name = String::new();
                loop {
                    match self.next() {
                        Tok::Const(part) => name.push_str(part),
                        other => return Err(Trouble::syntax(at, format!("unexpected {}", describe(other)))),
                    }
                    if !self.eat_op("::") {
                        break;
                    }
                    name.push_str("::");
                }
                let body = Box::new(self.bracketed(|p| p.statements(&["end"]))?);
                self.expect_end(at)?;
                Kind::Module(name, body)
            }
            "return" | "next" | "break" => {
                let value = match self.peek() {
                    Tok::Newline | Tok::End | Tok::OutClose | Tok::Keyword(_) | Tok::Op("}" | ")" | ":") => {
                        None
                    }
                    _ => Some(Box::new(self.right_hand_list()?)),
                };
                match keyword {
                    "return" => Kind::Return(value),
                    "next" => Kind::Next(value),
                    _ => Kind::Break(value),
                }
            }
            "yield" => Kind::Yield(self.call_rest(false)?.0),
            "defined?" => {
                let value = self.unary()?;
                Kind::Defined(Box::new(value))
            }
            "not" => Kind::Not(Box::new(self.expression()?)),
            "class" | "alias" | "undef" | "redo" | "retry" | "super" | "__LINE__" => {
                return Err(Trouble::unsupported(at, format!("`{keyword}'")));
            }
            other => return Err(Trouble::syntax(at, format!("unexpected `{other}'"))),
        };
        Ok(node(kind, at))
    }

    pub(super) fn loop_condition(&mut self) -> Parsed {
        let outer = std::mem::replace(&mut self.no_do, true);
        let condition = self.expression_statement();
        self.no_do = outer;
        let condition = condition?;
        self.eat_keyword("do");
        Ok(condition)
    }

    pub(super) fn conditional(&mut self, keyword: &str, at: usize) -> Parsed {
        let ends = ["elsif", "else", "end"];
        let condition = Box::new(self.bracketed(Self::expression_statement)?);
        self.then();
        let then = Box::new(self.bracketed(|p| p.statements(&ends))?);
        let otherwise = if keyword != "unless" && self.eat_keyword("elsif") {
            let at = self.at();
            return Ok(node(
                Kind::If(
                    condition,
                    then,
                    Box::new(self.deeper(|p| p.conditional("elsif", at))?),
                ),
                at,
            ));
        } else if self.eat_keyword("else") {
            Box::new(self.bracketed(|p| p.statements(&["end"]))?)
        } else {
            Box::new(node(Kind::Nil, at))
        };
        self.expect_end(at)?;
        Ok(node(
            match keyword {
                "unless" => Kind::If(condition, otherwise, then),
                _ => Kind::If(condition, then, otherwise),
            },
            at,
        ))
    }

    pub(super) fn then(&mut self) {
        self.skip_newlines();
        self.eat_keyword("then");
    }

    pub(super) fn case(&mut self, at: usize) -> Parsed {
        let subject = match self.peek() {
            Tok::Newline | Tok::Keyword("when") => None,
            _ => Some(Box::new(self.bracketed(Self::expression_statement)?)),
        };
        self.skip_newlines();
        if self.is_keyword("in") {
            return Err(Trouble::unsupported(self.at(), "pattern matching"));
        }
        let mut branches = Vec::new();
        while self.eat_keyword("when") {
            let mut values = Vec::new();
            loop {
                values.push(self.splat_or_expression()?);
                if !self.eat_op(",") {
                    break;
                }
                self.skip_newlines();
            }
            self.then();
            let body = self.bracketed(|p| p.statements(&["when", "else", "end"]))?;
            branches.push((values, body));
        }
        if branches.is_empty() {
            return Err(self.unexpected("`when'"));
        }
        let otherwise = match self.eat_keyword("else") {
            true => self.bracketed(|p| p.statements(&["end"]))?,
            false => node(Kind::Nil, at),
        };
        self.expect_end(at)?;
        Ok(node(Kind::Case(subject, branches, Box::new(otherwise)), at))
    }

    pub(super) fn definition(&mut self, at: usize) -> Parsed {
        let mut on_self = false;
        if self.is_keyword("self") && matches!(self.peek_next(), Tok::Op(".")) {
            self.next();
            self.next();
            on_self = true;
        }
        let name = match self.next() {
            Tok::Ident(name) | Tok::Const(name) => name.clone(),
            other => {
                return Err(Trouble::unsupported(
                    at,
                    format!("defining the method {}", describe(other)),
                ));
            }
        };
        // A method sees no variables from outside.
        let known = std::mem::take(&mut self.locals);
        let parsed = self.bracketed(|p| {
            let mut params = Vec::new();
            if p.eat_op("(") {
                params = p.params(")")?;
            } else {
                while !matches!(p.peek(), Tok::Newline | Tok::Op("=") | Tok::End) {
                    params.push(p.param(")")?);
                    p.eat_op(",");
                }
            }
            let body = if p.eat_op("=") {
                p.skip_newlines();
                p.statement()?
            } else {
                let body = p.body_with_rescue()?;
                p.expect_end(at)?;
                body
            };
            Ok(Body { params, body })
        });
        self.locals = known;
        Ok(node(
            Kind::Def {
                on_self,
                name,
                body: Rc::new(parsed?),
            },
            at,
        ))
    }
}
