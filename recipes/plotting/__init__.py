"""What draws: line charts for pages, figures as files, and media as addresses that hold them."""
