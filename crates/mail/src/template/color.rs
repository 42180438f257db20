//! The colour of an organization, and a legible text colour on it.

/// Red, green and blue.
pub(super) type Rgb = [u8; 3];

/// The colour of organizations without one.
pub(super) const PLAIN: Rgb = [0x33, 0x47, 0x5b];

/// Parses a CSS colour; its transparency is ignored. Nothing else gets into a style.
pub(super) fn parse_color(text: &str) -> Option<Rgb> {
    const COLOR_BYTES_MAX: usize = 64;
    let text = text.trim();
    let color = csscolorparser::parse(text).ok().filter(|_| text.len() <= COLOR_BYTES_MAX)?;
    let [red, green, blue, _] = color.to_rgba8();
    Some([red, green, blue])
}

/// The colour that emails show for `brand.color`, as `#rrggbb`. `None` if it is not a CSS colour.
#[must_use]
pub fn brand_color(text: &str) -> Option<String> {
    parse_color(text).map(hex)
}

/// The colour that emails show where there is none, as `#rrggbb`.
#[must_use]
pub fn default_brand_color() -> String {
    hex(PLAIN)
}

pub(super) fn hex([red, green, blue]: Rgb) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// White or black, whichever has the higher contrast on `color`. It always exceeds the 4.5 to 1 that WCAG 2 (1.4.3)
/// requires.
pub(super) fn legible_on(color: Rgb) -> Rgb {
    let (white, black) = ([255; 3], [0; 3]);
    if contrast(color, white) >= contrast(color, black) { white } else { black }
}

/// The colour, if a line in it is visible on white, else a plain one. WCAG 2 (1.4.11) requires 3 to 1.
pub(super) fn visible_on_white(color: Rgb) -> Rgb {
    if contrast(color, [255; 3]) >= 3.0 { color } else { PLAIN }
}

fn contrast(one: Rgb, other: Rgb) -> f32 {
    let (one, other) = (luminance(one), luminance(other));
    (one.max(other) + 0.05) / (one.min(other) + 0.05)
}

fn luminance(color: Rgb) -> f32 {
    let [red, green, blue] = color.map(|value| {
        let value = f32::from(value) / 255.0;
        if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
    });
    0.2126 * red + 0.7152 * green + 0.0722 * blue
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_on_any_colour_is_black_or_white() {
        #[track_caller]
        fn check(text: &str, expected: Option<(&str, &str)>) {
            let found = parse_color(text).map(|color| (hex(color), hex(legible_on(color))));
            assert_eq!(found.as_ref().map(|(color, on)| (color.as_str(), on.as_str())), expected, "{text}");
        }
        check("#0a7d4f", Some(("#0a7d4f", "#ffffff")));
        check("#FFF", Some(("#ffffff", "#000000")));
        check("gold", Some(("#ffd700", "#000000")));
        check("rgb(0 0 139)", Some(("#00008b", "#ffffff")));
        check("#777", Some(("#777777", "#000000")));
        check("#12345", None);
        check("red;background:url(x)", None);
        check("", None);
        check(&" ".repeat(100), None);
    }

    #[test]
    fn light_colours_are_not_used_for_lines_on_white() {
        for (text, expected) in [("#0a7d4f", "#0a7d4f"), ("#fff", "#33475b"), ("gold", "#33475b"), ("#000", "#000000")]
        {
            assert_eq!(hex(visible_on_white(parse_color(text).unwrap())), expected, "{text}");
        }
    }
}
