//! Checks what templates contain: known names and helpers, in the scope where they stand. Unlike rendering the samples, this
//! also covers branches that no sample reaches.

use handlebars::template::{BlockParam, HelperTemplate, Parameter, Template as Parsed, TemplateElement};
use handlebars::{JsonValue as Json, Path};
use serde_json::Map;

use super::facts_view::{EVERY_NAME, LINKS, SUBJECT, last_name};
use super::helpers::{FOR_AUTHORS, PARTIAL_SCOPE, parameters};
use super::problem::Mistake;

/// Finds unknown names and helpers in a subject, which cannot use itself.
pub(super) fn lint_subject(parsed: &Parsed) -> Vec<Mistake> {
    let mut names = EVERY_NAME.clone();
    names.remove(SUBJECT);
    lint_with(parsed, names)
}

/// Finds unknown names and helpers below a subject.
pub(super) fn lint(parsed: &Parsed) -> Vec<Mistake> {
    lint_with(parsed, EVERY_NAME.clone())
}

fn lint_with(parsed: &Parsed, names: Map<String, Json>) -> Vec<Mistake> {
    let mut linter = Linter { scopes: vec![Scope::of(Json::Object(names))], mistakes: Vec::new() };
    linter.template(parsed, 1);
    linter.mistakes
}

/// Where names are looked up.
struct Scope {
    /// What `this` is.
    this: Json,
    /// Names of the block itself: `request` of `{{#each requests as |request|}}`.
    block_names: Vec<(String, Json)>,
    /// Whether `@index`, `@first` and `@last` exist.
    is_loop: bool,
}

impl Scope {
    fn of(this: Json) -> Self {
        Self { this, block_names: Vec::new(), is_loop: false }
    }
}

/// What a parameter is.
enum Found {
    Known(Json),
    /// A literal, or the value of a helper.
    Value,
    Unknown(String),
}

struct Linter {
    /// The innermost scope last.
    scopes: Vec<Scope>,
    mistakes: Vec<Mistake>,
}

impl Linter {
    fn report(&mut self, line: usize, message: impl Into<String>) {
        self.mistakes.push(Mistake::new(line, message));
    }

    fn template(&mut self, parsed: &Parsed, line_of_block: usize) {
        for (index, element) in parsed.elements.iter().enumerate() {
            // The parser gives `{{else if}}` no position; use that of its block.
            let line = parsed.mapping.get(index).map_or(line_of_block, |at| at.0);
            match element {
                TemplateElement::RawString(_) | TemplateElement::Comment(_) => {}
                TemplateElement::Expression(expression) => self.expression(expression, line),
                TemplateElement::HelperBlock(block) => self.block(block, line),
                // Decorators, and anything that newer parsers support. Partials are expanded before.
                _ => self.report(line, "not supported here"),
            }
        }
    }

    fn expression(&mut self, expression: &HelperTemplate, line: usize) {
        let name = expression.name.as_name().unwrap_or_default();
        if !expression.params.is_empty() || !expression.hash.is_empty() {
            return self.helper(name, expression, line);
        }
        if parameters(name).is_some() {
            return self.report(line, format!("the helper `{name}` needs a name: {{{{{name} …}}}}"));
        }
        match self.find(&expression.name, line) {
            Found::Known(Json::Bool(_)) => {
                self.report(line, format!("`{name}` has no text; it can be used in conditions: {{{{#if {name}}}}}"));
            }
            Found::Known(Json::Object(parts)) => {
                let part = parts.keys().next().map_or("…", String::as_str);
                self.report(line, format!("`{name}` has no text; use one of its parts, such as `{name}.{part}`"));
            }
            Found::Known(Json::Array(_)) => {
                self.report(line, format!("`{name}` is a list: {{{{#each {name}}}}}…{{{{/each}}}}"));
            }
            Found::Known(_) | Found::Value => {}
            Found::Unknown(message) => self.report(line, message),
        }
    }

    /// A helper in an expression or in parentheses.
    fn helper(&mut self, name: &str, helper: &HelperTemplate, line: usize) {
        if matches!(name, "if" | "unless" | "each" | "with" | PARTIAL_SCOPE) {
            self.report(line, format!("`{name}` needs a block: {{{{#{name} …}}}}…{{{{/{name}}}}}"));
        }
        self.parameters(name, helper, line);
    }

    /// Checks the parameters of a helper, and returns what the first one is.
    fn parameters(&mut self, name: &str, helper: &HelperTemplate, line: usize) -> Option<Json> {
        let count = helper.params.len();
        match parameters(name) {
            None => self.report(line, format!("unknown helper `{name}`; there are: {FOR_AUTHORS}")),
            Some((least, most)) if count < least || count > most => {
                let expected = match (least, most) {
                    (1, 1) => "exactly one name".to_owned(),
                    (least, most) if least == most => format!("exactly {least} values"),
                    (0, most) => format!("at most {most} context, and parameters such as label=\"…\""),
                    (least, _) => format!("at least {least} values"),
                };
                self.report(line, format!("`{name}` takes {expected}"));
            }
            Some(_) => {}
        }
        let mut first = None;
        for (index, parameter) in helper.params.iter().enumerate() {
            match self.find(parameter, line) {
                Found::Known(value) if index == 0 => first = Some(value),
                Found::Known(_) | Found::Value => {}
                Found::Unknown(message) => self.report(line, message),
            }
        }
        first
    }

    fn block(&mut self, block: &HelperTemplate, line: usize) {
        let name = block.name.as_name().unwrap_or_default();
        if parameters(name).is_none() && block.params.is_empty() && block.hash.is_empty() {
            let message = match self.find(&block.name, line) {
                Found::Unknown(_) => format!("unknown helper `{name}`; there are: {FOR_AUTHORS}"),
                _ => format!("`{{{{#{name}}}}}`: write {{{{#if {name}}}}}…{{{{/if}}}}"),
            };
            return self.report(line, message);
        }
        let first = self.parameters(name, block, line);
        let inner = match name {
            "each" => match &first {
                Some(Json::Array(items)) => items.first().cloned(),
                Some(Json::Object(parts)) => parts.values().next().cloned(),
                Some(_) => {
                    let list = block.params.first().and_then(Parameter::as_name).unwrap_or_default();
                    self.report(line, format!("`{list}` is not a list"));
                    None
                }
                None => None,
            },
            "with" => first,
            PARTIAL_SCOPE => Some(self.partial_scope(block, first, line)),
            // Other helpers do not change the scope.
            _ => {
                self.branch(block.template.as_ref(), line);
                return self.branch(block.inverse.as_ref(), line);
            }
        };
        if let Some(BlockParam::Single(value) | BlockParam::Pair((value, _))) = &block.block_param {
            let from = block.params.first().and_then(Parameter::as_name).unwrap_or_default();
            self.check_link(value.as_name().unwrap_or_default(), Some(from), line);
        }
        let mut scope = Scope::of(inner.unwrap_or(Json::Null));
        scope.is_loop =
            name == "each" || name == PARTIAL_SCOPE && self.scopes.last().is_some_and(|scope| scope.is_loop);
        let param = |parameter: &Parameter| parameter.as_name().unwrap_or_default().to_owned();
        match &block.block_param {
            Some(BlockParam::Single(value)) => scope.block_names.push((param(value), scope.this.clone())),
            Some(BlockParam::Pair((value, key))) => {
                scope.block_names.push((param(value), scope.this.clone()));
                scope.block_names.push((param(key), Json::from(0)));
            }
            Some(_) | None => {}
        }
        self.scopes.push(scope);
        self.branch(block.template.as_ref(), line);
        self.scopes.pop();
        self.branch(block.inverse.as_ref(), line);
    }

    fn branch(&mut self, branch: Option<&Parsed>, line: usize) {
        if let Some(branch) = branch {
            self.template(branch, line);
        }
    }

    /// What `this` is in a partial with parameters.
    fn partial_scope(&mut self, block: &HelperTemplate, context: Option<Json>, line: usize) -> Json {
        let context = context.or_else(|| self.scopes.last().map(|scope| scope.this.clone()));
        let mut names = match context {
            Some(Json::Object(names)) => names,
            _ => Map::new(),
        };
        for (name, parameter) in &block.hash {
            let value = match self.find(parameter, line) {
                Found::Known(value) => value,
                Found::Value => Json::from("text"),
                Found::Unknown(message) => {
                    self.report(line, message);
                    continue;
                }
            };
            self.check_link(name, parameter.as_name(), line);
            names.insert(name.clone(), value);
        }
        Json::Object(names)
    }

    /// Checks that a new name that could be the address of a link stands for a fact that is one.
    fn check_link(&mut self, name: &str, value: Option<&str>, line: usize) {
        let is_link = |name: &str| LINKS.iter().any(|link| last_name(link) == last_name(name));
        if is_link(name) && !value.is_some_and(is_link) {
            self.report(
                line,
                format!("the parameter `{name}` is used as a link, so only another link can be its value"),
            );
        }
    }

    fn find(&mut self, parameter: &Parameter, line: usize) -> Found {
        match parameter {
            Parameter::Subexpression(inner) => {
                if let TemplateElement::Expression(helper) = inner.as_element() {
                    self.helper(helper.name.as_name().unwrap_or_default(), helper, line);
                }
                Found::Value
            }
            Parameter::Name(path) | Parameter::Path(Path::Relative((_, path)) | Path::Local((_, _, path))) => {
                self.look_up(path)
            }
            // A literal.
            _ => Found::Value,
        }
    }

    fn look_up(&self, path: &str) -> Found {
        let unknown = || Found::Unknown(format!("unknown name `{path}`"));
        if let Some(variable) = path.rsplit('/').next().and_then(|last| last.strip_prefix('@'))
            && !variable.starts_with("root")
        {
            let in_loop = self.scopes.iter().any(|scope| scope.is_loop);
            return match variable {
                "index" | "key" if in_loop => Found::Known(Json::from(0)),
                "first" | "last" if in_loop => Found::Known(Json::Bool(true)),
                "index" | "key" | "first" | "last" => {
                    Found::Unknown(format!("`{path}` exists only inside {{{{#each …}}}}"))
                }
                _ => unknown(),
            };
        }
        let mut depth = self.scopes.len().saturating_sub(1);
        let mut parts: Vec<&str> = path.split(['.', '/']).filter(|part| !part.is_empty()).collect();
        // `../` splits into two empty parts and is counted here.
        let ups = path.matches("../").count();
        if path == ".." {
            depth = depth.saturating_sub(1);
            parts.clear();
        }
        depth = depth.saturating_sub(ups);
        if parts.first() == Some(&"@root") {
            depth = 0;
            parts.remove(0);
        }
        if parts.first() == Some(&"this") {
            parts.remove(0);
        }
        let from_block = || {
            let first = parts.first()?;
            let named = self.scopes.iter().rev().flat_map(|scope| &scope.block_names).find(|(name, _)| name == first);
            named.map(|(_, value)| (value, &parts[1..]))
        };
        let Some((mut value, rest)) =
            from_block().or_else(|| self.scopes.get(depth).map(|scope| (&scope.this, parts.as_slice())))
        else {
            return unknown();
        };
        for part in rest {
            let part = part.trim_matches(['[', ']']);
            let inner = match value {
                Json::Array(items) if part.parse::<usize>().is_ok() => items.first(),
                _ => value.get(part),
            };
            match inner {
                Some(inner) => value = inner,
                None => return unknown(),
            }
        }
        Found::Known(value.clone())
    }
}
