//! What of a template stands outside of Jinja's brackets.

/// The text that reaches every result; `placeholder` stands where an expression or a statement was.
pub fn literals(template: &str, placeholder: &str) -> String {
    let mut literals = String::new();
    let mut rest = template;
    while let Some(start) = ["{{", "{%", "{#"].iter().filter_map(|open| rest.find(open)).min() {
        let (before, block) = rest.split_at(start);
        literals.push_str(before);
        let (end, instead) = match block.as_bytes().get(1) {
            Some(b'%') => ("%}", placeholder),
            Some(b'#') => ("#}", ""),
            _ => ("}}", placeholder),
        };
        literals.push_str(instead);
        rest = block.split_once(end).map_or("", |(_, rest)| rest);
    }
    literals + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_what_stands_outside_of_brackets() {
        for (template, expected) in [
            ("astro/main", "astro/main"),
            ("astro/{{ channel }}/{{ topic | replace('.', '+') }}/x", "astro///x"),
            ("{% if room %}a{% else %}#{% endif %}", "a#"),
            ("{# a comment + #}b", "b"),
            ("{{ never closed", ""),
            ("", ""),
        ] {
            assert_eq!(literals(template, ""), expected, "{template}");
        }
        assert_eq!(literals("a/{{ b }}/c{# d #}{% e %}", "x"), "a/x/cx");
    }
}
