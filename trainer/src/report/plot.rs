//! Draws the loss curve as an SVG file.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, anyhow};
use plotters::prelude::*;

use crate::io::files::write_whole;
use crate::report::metric::Metric;

/// Draws the loss of the training steps and of the evaluations of both splits. With fewer than two
/// points there is no curve, and no file.
///
/// # Errors
/// The file cannot be written.
pub fn loss_curve(path: &Path, metrics: &[Metric]) -> anyhow::Result<()> {
    let mut steps = Vec::new();
    let (mut train, mut valid) = (Vec::new(), Vec::new());
    for metric in metrics {
        match metric {
            Metric::Step { iter, loss, .. } => steps.push((*iter as f64, *loss)),
            Metric::Evaluation(at) => {
                train.push((at.iter as f64, at.train_loss));
                valid.push((at.iter as f64, at.val_loss));
            }
        }
    }
    let all: Vec<(f64, f64)> = [&steps[..], &train, &valid].concat();
    let (x, y) = (range(all.iter().map(|p| p.0)), range(all.iter().map(|p| p.1)));
    let (Some(x), Some(y)) = (x, y) else { return Ok(()) };

    let mut svg = String::new();
    let drawn = draw(&mut svg, x, y, [("step", steps), ("train", train), ("validation", valid)]);
    drawn.map_err(|e| anyhow!("{e}")).context("drawing the loss curve")?;
    write_whole(path, |out| Ok(out.write_all(svg.as_bytes())?))
}

fn draw(
    svg: &mut String,
    x: Range<f64>,
    y: Range<f64>,
    curves: [(&str, Vec<(f64, f64)>); 3],
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, (900, 500)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart =
        ChartBuilder::on(&root).margin(16).x_label_area_size(40).y_label_area_size(56).build_cartesian_2d(x, y)?;
    chart.configure_mesh().x_desc("step").y_desc("nats per token").draw()?;
    let colours = [RGBColor(190, 200, 215), RGBColor(40, 110, 190), RGBColor(200, 70, 30)];
    for ((name, points), colour) in curves.into_iter().zip(colours) {
        let line = chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
        line.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
    }
    chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;
    Ok(root.present()?)
}

/// The range from the smallest to the largest finite number; `None` if it is empty.
fn range(values: impl Iterator<Item = f64>) -> Option<Range<f64>> {
    let (min, max) = values
        .filter(|x| x.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), x| (x.min(min), x.max(max)));
    (min < max).then_some(min..max)
}
