//! JSON as the standard (RFC 8259) has it: strict, without duplicate keys, nested 32 deep at most.

use std::collections::BTreeMap;
use std::fmt;

#[derive(Debug, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    /// As it was written: a size must not pass through a float.
    Number(String),
    String(String),
    Array(Vec<Json>),
    Object(BTreeMap<String, Json>),
}

const MAX_DEPTH: usize = 32;

impl Json {
    pub fn parse(text: &str) -> Result<Json, String> {
        let mut parser = Parser { text, at: 0 };
        let value = parser.value(0)?;
        parser.skip_space();
        if parser.at < text.len() {
            return parser.fail("expected the end");
        }
        Ok(value)
    }

    /// The entry of an object; null if there is none.
    pub fn get(&self, key: &str) -> &Json {
        match self {
            Json::Object(entries) => entries.get(key).unwrap_or(&Json::Null),
            _ => &Json::Null,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Json::String(text) => Some(text),
            _ => None,
        }
    }

    /// An integer without fraction or exponent.
    pub fn as_integer(&self) -> Option<i64> {
        match self {
            Json::Number(text) => text.parse().ok(),
            _ => None,
        }
    }

    pub fn as_size(&self) -> Option<usize> {
        self.as_integer()?.try_into().ok()
    }

    /// An array of sizes, such as a shape.
    pub fn as_sizes(&self) -> Option<Vec<usize>> {
        match self {
            Json::Array(items) => items.iter().map(Json::as_size).collect(),
            _ => None,
        }
    }
}

/// As in JSON, but arrays and objects by name only.
impl fmt::Display for Json {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Json::Null => write!(out, "null"),
            Json::Bool(truth) => write!(out, "{truth}"),
            Json::Number(text) => write!(out, "{text}"),
            Json::String(text) => write!(out, "{text:?}"),
            Json::Array(_) => write!(out, "an array"),
            Json::Object(_) => write!(out, "an object"),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn fail<T>(&self, problem: &str) -> Result<T, String> {
        Err(format!("not JSON: {problem} at byte {}", self.at))
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Step over `expected` if it is next.
    fn skip(&mut self, expected: &str) -> bool {
        let found = self.text[self.at..].starts_with(expected);
        self.at += if found { expected.len() } else { 0 };
        found
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn value(&mut self, depth: usize) -> Result<Json, String> {
        if depth > MAX_DEPTH {
            return self.fail("nested too deep");
        }
        self.skip_space();
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => Ok(Json::String(self.string()?)),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ if self.skip("null") => Ok(Json::Null),
            _ if self.skip("true") => Ok(Json::Bool(true)),
            _ if self.skip("false") => Ok(Json::Bool(false)),
            _ => self.fail("expected a value"),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Json, String> {
        let mut entries = BTreeMap::new();
        self.items("{", "}", |parser| {
            parser.skip_space();
            let key = parser.string()?;
            parser.skip_space();
            if !parser.skip(":") {
                return parser.fail("expected ':'");
            }
            let value = parser.value(depth + 1)?;
            match entries.insert(key, value) {
                None => Ok(()),
                Some(_) => parser.fail("a key stands twice before here"),
            }
        })?;
        Ok(Json::Object(entries))
    }

    fn array(&mut self, depth: usize) -> Result<Json, String> {
        let mut values = Vec::new();
        self.items("[", "]", |parser| {
            values.push(parser.value(depth + 1)?);
            Ok(())
        })?;
        Ok(Json::Array(values))
    }

    /// Items between brackets, separated by commas.
    fn items(
        &mut self,
        open: &str,
        close: &str,
        mut item: impl FnMut(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        self.skip(open);
        self.skip_space();
        if self.skip(close) {
            return Ok(());
        }
        loop {
            item(self)?;
            self.skip_space();
            if self.skip(close) {
                return Ok(());
            }
            if !self.skip(",") {
                return self.fail("expected ',' or the closing bracket");
            }
        }
    }

    fn number(&mut self) -> Result<Json, String> {
        let start = self.at;
        self.skip("-");
        if !self.skip("0") {
            self.digits()?;
        }
        if self.skip(".") {
            self.digits()?;
        }
        if self.skip("e") || self.skip("E") {
            let _ = self.skip("+") || self.skip("-");
            self.digits()?;
        }
        Ok(Json::Number(self.text[start..self.at].to_string()))
    }

    fn digits(&mut self) -> Result<(), String> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == start {
            self.fail("expected a digit")
        } else {
            Ok(())
        }
    }

    fn string(&mut self) -> Result<String, String> {
        if !self.skip("\"") {
            return self.fail("expected a string");
        }
        let mut string = String::new();
        loop {
            match self.text[self.at..].chars().next() {
                None | Some('\0'..='\x1f') => return self.fail("unfinished string"),
                Some('"') => {
                    self.at += 1;
                    return Ok(string);
                }
                Some('\\') => string.push(self.escape()?),
                Some(c) => {
                    self.at += c.len_utf8();
                    string.push(c);
                }
            }
        }
    }

    fn escape(&mut self) -> Result<char, String> {
        const SHORT: [(&str, char); 8] = [
            ("\\\"", '"'),
            ("\\\\", '\\'),
            ("\\/", '/'),
            ("\\b", '\x08'),
            ("\\f", '\x0c'),
            ("\\n", '\n'),
            ("\\r", '\r'),
            ("\\t", '\t'),
        ];
        for (written, meant) in SHORT {
            if self.skip(written) {
                return Ok(meant);
            }
        }
        let mut code = self.unicode_escape()?;
        if (0xd800..0xdc00).contains(&code) {
            let low = self.unicode_escape()?; // the pair's second half
            if !(0xdc00..0xe000).contains(&low) {
                return self.fail("half of a surrogate pair");
            }
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        }
        char::from_u32(code).map_or_else(|| self.fail("half of a surrogate pair"), Ok)
    }

    fn unicode_escape(&mut self) -> Result<u32, String> {
        if !self.skip("\\u") {
            return self.fail("unknown escape");
        }
        match self.text.get(self.at..self.at + 4) {
            Some(hex) if hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
                self.at += 4;
                Ok(u32::from_str_radix(hex, 16).unwrap())
            }
            _ => self.fail("expected four hexadecimal digits"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Json;

    #[test]
    fn reads_what_is_json() {
        let json =
            Json::parse(" {\"a\": [1, -0, 2.5e+3], \"b\": {\"c\": null}, \"d\": true} ").unwrap();
        assert_eq!(
            json.get("a"),
            &Json::Array(["1", "-0", "2.5e+3"].map(|n| Json::Number(n.into())).into())
        );
        assert_eq!(json.get("b").get("c"), &Json::Null);
        assert_eq!(json.get("d"), &Json::Bool(true));
        assert_eq!(Json::parse(r#""\u00e9\n\ud83d\ude00é""#).unwrap().as_str(), Some("é\n😀é"));
        assert_eq!(Json::parse("[3, 0]").unwrap().as_sizes(), Some(vec![3, 0]));
    }

    #[test]
    fn an_integer_has_no_fraction_and_no_exponent_and_fits() {
        let integer = |text| Json::parse(text).unwrap().as_integer();
        assert_eq!(integer("-7"), Some(-7));
        for text in ["1.0", "1e2", "99999999999999999999", "true", "\"1\""] {
            assert_eq!(integer(text), None, "{text}");
        }
    }

    #[test]
    fn refuses_what_is_not() {
        let deep = "[".repeat(100_000);
        for text in [
            "",
            "{",
            "[1,]",
            "{\"a\":1,}",
            "01",
            "1.",
            ".5",
            "+1",
            "NaN",
            "nul",
            "\"",
            "\"\\x\"",
            "\"\n\"",
            "\"\\ud800\"",
            "\"\\ud800\\u0041\"",
            "\"\\u00\"",
            "\"\\u+123\"",
            "{\"a\":1,\"a\":2}",
            "1 2",
            "{1:2}",
            &deep,
        ] {
            assert!(Json::parse(text).is_err(), "{text}");
        }
    }
}
