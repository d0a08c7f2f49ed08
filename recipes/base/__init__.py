"""What everything else in recipes rests on; it imports nothing of recipes but itself."""
