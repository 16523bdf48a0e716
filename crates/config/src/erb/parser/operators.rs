//! Operators by precedence, assignments, and what starts an expression.

use super::{Kind, Node, Parsed, Parser, Target, Tok, Trouble, call, node, rescued};

/// Binding power of a binary operator, and whether it groups to the right.
fn binding(op: &str) -> Option<(u8, bool)> {
    Some(match op {
        ".." | "..." => (1, false),
        "||" => (2, false),
        "&&" => (3, false),
        "<=>" | "==" | "===" | "!=" | "=~" | "!~" => (5, false),
        "<" | "<=" | ">" | ">=" => (6, false),
        "|" | "^" => (7, false),
        "&" => (8, false),
        "<<" | ">>" => (9, false),
        "+" | "-" => (10, false),
        "*" | "/" | "%" => (11, false),
        "**" => (13, true),
        _ => return None,
    })
}

impl Parser<'_> {
    /// An expression with `not`, `and` and `or`.
    pub(super) fn expression_statement(&mut self) -> Parsed {
        let mut left = self.not_expression()?;
        loop {
            let at = self.at();
            if self.is_keyword("in") {
                return Err(Trouble::unsupported(at, "pattern matching"));
            }
            let Tok::Keyword(keyword @ ("and" | "or")) = self.peek() else {
                return Ok(left);
            };
            self.next();
            self.skip_newlines();
            let right = Box::new(self.not_expression()?);
            left = match *keyword {
                "and" => node(Kind::And(Box::new(left), right), at),
                _ => node(Kind::Or(Box::new(left), right), at),
            };
        }
    }

    pub(super) fn not_expression(&mut self) -> Parsed {
        let at = self.at();
        if self.eat_keyword("not") {
            let value = self.deeper(Self::not_expression)?;
            return Ok(node(Kind::Not(Box::new(value)), at));
        }
        self.expression()
    }

    /// An expression, assignments included.
    pub(super) fn expression(&mut self) -> Parsed {
        self.deeper(Self::assignment)
    }

    pub(super) fn assignment(&mut self) -> Parsed {
        let at = self.at();
        // Ruby knows a name as a variable from its assignment on, the right-hand side included.
        if let (Tok::Ident(name), Tok::Op("=" | "||=" | "&&=" | "+=" | "-=" | "*=" | "/=" | "<<=" | "%=")) =
            (self.peek(), self.peek_next())
        {
            self.locals.insert(name.clone());
        }
        let left = self.ternary()?;
        let Tok::Op(op) = self.peek() else { return Ok(left) };
        let operator = match *op {
            "=" => "",
            "||=" | "&&=" | "+=" | "-=" | "*=" | "/=" | "%=" | "<<=" | "**=" | "|=" | "&=" => {
                &op[..op.len() - 1]
            }
            _ => return Ok(left),
        };
        let target = self.target_of(left)?;
        self.next();
        self.skip_newlines();
        let mut value = if operator.is_empty() && self.is_op("*") {
            self.right_hand_list()?
        } else {
            self.expression()?
        };
        if self.is_keyword("rescue") {
            self.next();
            let fallback = self.expression()?;
            value = rescued(value, fallback, at);
        }
        let kind = if operator.is_empty() {
            Kind::Assign(Box::new(target), Box::new(value))
        } else {
            Kind::OpAssign(Box::new(target), operator, Box::new(value))
        };
        Ok(node(kind, at))
    }

    pub(super) fn target_of(&mut self, left: Node) -> Result<Target, Trouble> {
        Ok(match left.kind {
            Kind::Call(call) if call.bare => {
                self.locals.insert(call.name.clone());
                Target::Local(call.name)
            }
            Kind::Call(call) if call.name == "[]" => match call.receiver {
                Some(receiver) => Target::Index(receiver, call.args),
                None => return Err(Trouble::syntax(left.at, "nothing to assign to")),
            },
            Kind::Call(call) if call.receiver.is_some() => {
                return Err(Trouble::unsupported(
                    left.at,
                    format!("assigning to the attribute `{}'", call.name),
                ));
            }
            Kind::Instance(name) => Target::Instance(name),
            Kind::Global(name) => Target::Global(name),
            Kind::Constant(None, name) => Target::Constant(name),
            _ => {
                return Err(Trouble::syntax(
                    left.at,
                    "the left side of `=' cannot be assigned to",
                ));
            }
        })
    }

    pub(super) fn ternary(&mut self) -> Parsed {
        let at = self.at();
        let condition = self.binary(0)?;
        if !self.is_op("?") {
            return Ok(condition);
        }
        self.next();
        self.skip_newlines();
        let then = self.deeper(Self::ternary_branch)?;
        self.skip_newlines();
        // `flag ? a: b` lexes as a label; the branch then holds only the name.
        if !self.eat_op(":") {
            return Err(self.unexpected("`:'"));
        }
        self.skip_newlines();
        let otherwise = self.deeper(Self::ternary_branch)?;
        Ok(node(
            Kind::If(Box::new(condition), Box::new(then), Box::new(otherwise)),
            at,
        ))
    }

    pub(super) fn ternary_branch(&mut self) -> Parsed {
        self.assignment()
    }

    pub(super) fn binary(&mut self, least: u8) -> Parsed {
        let at = self.at();
        let mut left = if least <= 4 && self.is_keyword("defined?") {
            self.next();
            let value = self.deeper(|p| p.unary())?;
            node(Kind::Defined(Box::new(value)), at)
        } else {
            self.unary()?
        };
        while let Tok::Op(op) = self.peek() {
            let Some((power, right_first)) = binding(op) else {
                break;
            };
            if power < least {
                break;
            }
            let op_at = self.at();
            self.next();
            self.skip_newlines_unless_range(op);
            if matches!(*op, ".." | "...") {
                let end = if self.starts_value() {
                    Some(Box::new(self.deeper(|p| p.binary(power + 1))?))
                } else {
                    None
                };
                left = node(Kind::Range(Some(Box::new(left)), end, *op == "..."), op_at);
                continue;
            }
            let right = self.deeper(|p| p.binary(if right_first { power } else { power + 1 }))?;
            left = match *op {
                "&&" => node(Kind::And(Box::new(left), Box::new(right)), op_at),
                "||" => node(Kind::Or(Box::new(left), Box::new(right)), op_at),
                "!=" => {
                    let equal = call(Some(left), "==", vec![right], op_at);
                    node(Kind::Not(Box::new(equal)), op_at)
                }
                "!~" => {
                    let found = call(Some(left), "=~", vec![right], op_at);
                    node(Kind::Not(Box::new(found)), op_at)
                }
                _ => call(Some(left), op, vec![right], op_at),
            };
        }
        Ok(left)
    }

    pub(super) fn skip_newlines_unless_range(&mut self, op: &str) {
        if !matches!(op, ".." | "...") {
            self.skip_newlines();
        }
    }

    pub(super) fn starts_value(&self) -> bool {
        matches!(
            self.peek(),
            Tok::Int(_)
                | Tok::Float(_)
                | Tok::Str(_)
                | Tok::Ident(_)
                | Tok::Const(_)
                | Tok::Instance(_)
                | Tok::Op("(" | "-")
        )
    }

    pub(super) fn unary(&mut self) -> Parsed {
        let at = self.at();
        match self.peek() {
            Tok::Op("!") => {
                self.next();
                let value = self.deeper(Self::unary)?;
                Ok(node(Kind::Not(Box::new(value)), at))
            }
            Tok::Op("-") => {
                self.next();
                // The sign belongs to the number before methods are called on it, but not before `**`.
                match self.peek() {
                    Tok::Int(value) if !matches!(self.peek_next(), Tok::Op("**")) => {
                        self.next();
                        let value = node(Kind::Int(value.wrapping_neg()), at);
                        self.postfix(value)
                    }
                    Tok::Float(value) if !matches!(self.peek_next(), Tok::Op("**")) => {
                        self.next();
                        self.postfix(node(Kind::Float(-value), at))
                    }
                    _ => {
                        let value = self.deeper(|p| p.binary(12))?;
                        Ok(call(Some(value), "-@", Vec::new(), at))
                    }
                }
            }
            Tok::Op("+") => {
                self.next();
                self.deeper(Self::unary)
            }
            Tok::Op("&") => {
                // Only as an argument; `arguments` takes it before it gets here.
                Err(Trouble::syntax(at, "unexpected `&'"))
            }
            Tok::Op("..") | Tok::Op("...") => Err(Trouble::unsupported(at, "ranges without a beginning")),
            _ => {
                let primary = self.deeper(Self::primary)?;
                self.postfix(primary)
            }
        }
    }
}
