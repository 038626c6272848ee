"""Model to chain, profile, plans and exact balance."""
