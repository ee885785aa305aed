"""Programs on irregular time series: their data, training, scores, predictions and figures."""
