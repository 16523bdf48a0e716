//! Tokens become a tree: precedence climbing for operators, recursive descent for the rest.

mod calls;
mod operators;
mod terms;

use std::collections::HashSet;

use super::ast::{Body, Call, Kind, Node, Pair, Param, Piece, Rescue, Target};
use super::lexer::{RawPiece, Tok, Token, Trouble, tokens};

/// Expressions nested deeper than this are refused; real files stay below ten.
const MAX_DEPTH: usize = 64;

/// Parses a program with the marks of [`super::template`].
pub(super) fn parse(code: &str) -> Result<Node, Trouble> {
    let tokens = tokens(code)?;
    let mut parser = Parser {
        tokens: &tokens,
        pos: 0,
        locals: HashSet::new(),
        no_do: false,
        depth: 0,
    };
    let program = parser.statements(&[])?;
    match parser.peek() {
        Tok::End => Ok(program),
        other => Err(Trouble::syntax(
            parser.at(),
            format!("unexpected {}", describe(other)),
        )),
    }
}

pub(super) struct Parser<'t> {
    tokens: &'t [Token],
    pos: usize,
    locals: HashSet<String>,
    /// Set where `do` belongs to a loop or to an outer call.
    no_do: bool,
    depth: usize,
}

type Parsed = Result<Node, Trouble>;

fn node(kind: Kind, at: usize) -> Node {
    Node { kind, at }
}

impl<'t> Parser<'t> {
    fn token(&self) -> &'t Token {
        &self.tokens[self.pos.min(self.tokens.len() - 1)]
    }

    fn peek(&self) -> &'t Tok {
        &self.token().tok
    }

    fn peek_next(&self) -> &'t Tok {
        &self.tokens[(self.pos + 1).min(self.tokens.len() - 1)].tok
    }

    fn at(&self) -> usize {
        self.token().at
    }

    fn next(&mut self) -> &'t Tok {
        let tok = &self.token().tok;
        self.pos = (self.pos + 1).min(self.tokens.len() - 1);
        tok
    }

    fn is_op(&self, op: &str) -> bool {
        matches!(self.peek(), Tok::Op(found) if *found == op)
    }

    fn is_keyword(&self, keyword: &str) -> bool {
        matches!(self.peek(), Tok::Keyword(found) if *found == keyword)
    }

    fn eat_op(&mut self, op: &str) -> bool {
        let found = self.is_op(op);
        if found {
            self.next();
        }
        found
    }

    fn eat_keyword(&mut self, keyword: &str) -> bool {
        let found = self.is_keyword(keyword);
        if found {
            self.next();
        }
        found
    }

    fn expect_op(&mut self, op: &str) -> Result<(), Trouble> {
        if self.eat_op(op) {
            Ok(())
        } else {
            Err(self.unexpected(&format!("`{op}'")))
        }
    }

    /// The `end` of what begins at `opened`.
    fn expect_end(&mut self, opened: usize) -> Result<(), Trouble> {
        if self.eat_keyword("end") {
            Ok(())
        } else if matches!(self.peek(), Tok::End) {
            Err(Trouble::syntax(
                opened,
                "what begins here is never closed by `end'",
            ))
        } else {
            Err(self.unexpected("`end'"))
        }
    }

    fn unexpected(&self, wanted: &str) -> Trouble {
        Trouble::syntax(
            self.at(),
            format!("unexpected {}, expecting {wanted}", describe(self.peek())),
        )
    }

    fn skip_newlines(&mut self) {
        while matches!(self.peek(), Tok::Newline) {
            self.next();
        }
    }

    fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, Trouble>) -> Result<T, Trouble> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Trouble::unsupported(self.at(), "expressions nested this deep"));
        }
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    /// Inside brackets `do` is free again.
    fn bracketed<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, Trouble>) -> Result<T, Trouble> {
        let outer = std::mem::replace(&mut self.no_do, false);
        let parsed = parse(self);
        self.no_do = outer;
        parsed
    }

    /// Statements up to one of `ends` (keywords), a closing bracket or the end.
    fn statements(&mut self, ends: &[&str]) -> Parsed {
        let at = self.at();
        let mut list = Vec::new();
        loop {
            self.skip_newlines();
            match self.peek() {
                Tok::End | Tok::OutClose | Tok::Op(")" | "}") => break,
                Tok::Keyword(keyword) if ends.contains(keyword) => break,
                _ => {}
            }
            list.push(self.deeper(Self::statement)?);
            let printed = matches!(
                self.tokens[self.pos.saturating_sub(1)].tok,
                Tok::Text(_) | Tok::OutClose
            );
            match self.peek() {
                Tok::Newline | Tok::End | Tok::OutClose | Tok::Op(")" | "}") => {}
                Tok::Keyword(keyword) if ends.contains(keyword) => {}
                _ if printed => {}
                other => {
                    return Err(Trouble::syntax(
                        self.at(),
                        format!("unexpected {}", describe(other)),
                    ));
                }
            }
        }
        if list.len() == 1 {
            return Ok(list.remove(0));
        }
        Ok(node(Kind::Sequence(list), at))
    }

    fn statement(&mut self) -> Parsed {
        let at = self.at();
        match self.peek() {
            Tok::Text(index) => {
                self.next();
                return Ok(node(Kind::Text(*index), at));
            }
            Tok::OutOpen => {
                self.next();
                let value = self.bracketed(|p| p.statements(&[]))?;
                if !matches!(self.next(), Tok::OutClose) {
                    return Err(Trouble::syntax(at, "the expression of <%= … %> is not complete"));
                }
                return Ok(node(Kind::Print(Box::new(value)), at));
            }
            _ => {}
        }
        let mut left = match self.multi_assignment()? {
            Some(assignment) => assignment,
            None => self.expression_statement()?,
        };
        if self.is_op(",") && matches!(left.kind, Kind::Assign(..)) {
            left = self.assigned_list(left)?;
        }
        if self.is_keyword("in") || self.is_op("=>") {
            return Err(Trouble::unsupported(self.at(), "pattern matching"));
        }
        loop {
            let Tok::Keyword(keyword) = self.peek() else {
                return Ok(left);
            };
            match *keyword {
                "if" | "unless" => {
                    self.next();
                    let condition = Box::new(self.expression_statement()?);
                    let nothing = Box::new(node(Kind::Nil, at));
                    left = if *keyword == "if" {
                        node(Kind::If(condition, Box::new(left), nothing), at)
                    } else {
                        node(Kind::If(condition, nothing, Box::new(left)), at)
                    };
                }
                "while" | "until" => {
                    self.next();
                    let condition = Box::new(self.expression_statement()?);
                    let body_first = matches!(left.kind, Kind::Begin { .. });
                    left = node(
                        Kind::While {
                            condition,
                            body: Box::new(left),
                            until: *keyword == "until",
                            body_first,
                        },
                        at,
                    );
                }
                "rescue" => {
                    self.next();
                    let fallback = self.expression_statement()?;
                    left = rescued(left, fallback, at);
                }
                _ => return Ok(left),
            }
        }
    }

    /// `a = x, y`: only a statement may assign a list without brackets.
    fn assigned_list(&mut self, assignment: Node) -> Parsed {
        let Kind::Assign(target, first) = assignment.kind else {
            return Ok(assignment);
        };
        let mut list = vec![*first];
        while self.eat_op(",") {
            self.skip_newlines();
            list.push(self.splat_or_expression()?);
        }
        let array = node(Kind::Array(list), assignment.at);
        Ok(node(Kind::Assign(target, Box::new(array)), assignment.at))
    }

    /// `a, b = …`; `None` when this is something else.
    fn multi_assignment(&mut self) -> Result<Option<Node>, Trouble> {
        let (start, at) = (self.pos, self.at());
        let mut targets = Vec::new();
        loop {
            let splat = self.eat_op("*");
            let Some(target) = self.simple_target() else { break };
            targets.push(if splat {
                Target::Splat(Box::new(target))
            } else {
                target
            });
            if !self.eat_op(",") {
                break;
            }
        }
        let several = targets.len() > 1 || matches!(targets.first(), Some(Target::Splat(_)));
        if !several || !self.is_op("=") {
            self.pos = start;
            return Ok(None);
        }
        self.next();
        self.skip_newlines();
        for target in &targets {
            self.declare(target);
        }
        let value = self.right_hand_list()?;
        Ok(Some(node(Kind::MultiAssign(targets, Box::new(value)), at)))
    }

    fn simple_target(&mut self) -> Option<Target> {
        let target = match self.peek() {
            Tok::Ident(name) if !name.ends_with(['?', '!']) => Target::Local(name.clone()),
            Tok::Instance(name) => Target::Instance(name.clone()),
            _ => return None,
        };
        self.next();
        Some(target)
    }

    fn declare(&mut self, target: &Target) {
        match target {
            Target::Local(name) => {
                self.locals.insert(name.clone());
            }
            Target::Splat(inner) => self.declare(inner),
            _ => {}
        }
    }

    /// `x` or `x, y, *z`, which is an array.
    fn right_hand_list(&mut self) -> Parsed {
        let at = self.at();
        let first = self.splat_or_expression()?;
        if !self.is_op(",") && !matches!(first.kind, Kind::Splat(_)) {
            return Ok(first);
        }
        let mut list = vec![first];
        while self.eat_op(",") {
            self.skip_newlines();
            list.push(self.splat_or_expression()?);
        }
        Ok(node(Kind::Array(list), at))
    }

    fn splat_or_expression(&mut self) -> Parsed {
        let at = self.at();
        if self.eat_op("*") {
            let value = self.ternary()?;
            return Ok(node(Kind::Splat(Box::new(value)), at));
        }
        self.expression()
    }
}

fn call_kind(receiver: Option<Node>, name: &str, args: Vec<Node>) -> Kind {
    Kind::Call(Call {
        receiver: receiver.map(Box::new),
        name: name.to_owned(),
        args,
        block: None,
        safe: false,
        bare: false,
    })
}

fn call(receiver: Option<Node>, name: &str, args: Vec<Node>, at: usize) -> Node {
    node(call_kind(receiver, name, args), at)
}

fn bare(name: &str, at: usize) -> Node {
    node(
        Kind::Call(Call {
            receiver: None,
            name: name.to_owned(),
            args: Vec::new(),
            block: None,
            safe: false,
            bare: true,
        }),
        at,
    )
}

fn rescued(body: Node, fallback: Node, at: usize) -> Node {
    node(
        Kind::Begin {
            body: Box::new(body),
            rescues: vec![Rescue {
                classes: Vec::new(),
                name: None,
                body: fallback,
            }],
            otherwise: None,
            ensure: None,
        },
        at,
    )
}

/// A token in the words of a message.
fn describe(tok: &Tok) -> String {
    match tok {
        Tok::End => "end-of-input".to_owned(),
        Tok::Newline => "end of the line".to_owned(),
        Tok::Text(_) => "text of the template".to_owned(),
        Tok::OutOpen | Tok::OutClose => "end of the tag".to_owned(),
        Tok::Op(op) => format!("`{op}'"),
        Tok::Keyword(keyword) => format!("`{keyword}'"),
        Tok::Ident(name) | Tok::Const(name) | Tok::Instance(name) | Tok::Global(name) => format!("`{name}'"),
        Tok::Label(name) => format!("`{name}:'"),
        Tok::Int(_) | Tok::Float(_) => "a number".to_owned(),
        Tok::Regex(..) => "a regular expression".to_owned(),
        Tok::Symbol(_) | Tok::Symbols(_) => "a symbol".to_owned(),
        Tok::Str(_) | Tok::StrLabel(_) | Tok::Command(_) | Tok::Words(_) => "a string".to_owned(),
    }
}
