//! Small plots of the last hour.

use maud::{Markup, html};

const WIDTH: f64 = 240.0;
const HEIGHT: f64 = 36.0;

/// A line from the oldest to the newest value; gaps where a value is unknown. The scale begins at 0 and ends at the largest value.
/// `capacity` values fill the width.
pub fn plot(values: &[Option<f64>], capacity: usize, label: &str) -> Markup {
    let max = values.iter().flatten().copied().fold(0.0, f64::max);
    let points = points(values, capacity, max);
    html! {
        svg.plot viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" role="img" aria-label=(label) {
            line x1="0" x2=(WIDTH) y1=(HEIGHT - 1.0) y2=(HEIGHT - 1.0) {}
            @for stretch in points { polyline points=(stretch) {} }
        }
    }
}

/// The points of each stretch of known values.
#[allow(clippy::cast_precision_loss, reason = "a place among some hundred values")]
fn points(values: &[Option<f64>], capacity: usize, max: f64) -> Vec<String> {
    let step = WIDTH / capacity.saturating_sub(1).max(1) as f64;
    let begin = capacity.saturating_sub(values.len());
    let height = |value: f64| if max > 0.0 { HEIGHT - 2.0 - value / max * (HEIGHT - 4.0) } else { HEIGHT - 2.0 };
    let mut stretches = vec![String::new()];
    for (place, value) in values.iter().enumerate() {
        match value {
            Some(value) => {
                let point = format!("{:.1},{:.1} ", (begin + place) as f64 * step, height(*value));
                if let Some(stretch) = stretches.last_mut() {
                    stretch.push_str(&point);
                }
            }
            None => stretches.push(String::new()),
        }
    }
    stretches.retain(|stretch| !stretch.is_empty());
    stretches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_has_gaps_and_ends_at_the_right() {
        let drawn = points(&[Some(0.0), None, Some(2.0), Some(4.0)], 4, 4.0);
        assert_eq!(drawn, ["0.0,34.0 ", "160.0,18.0 240.0,2.0 "]);
        assert_eq!(points(&[Some(0.0)], 4, 0.0), ["240.0,34.0 "]);
        assert!(points(&[], 4, 0.0).is_empty());
    }
}
