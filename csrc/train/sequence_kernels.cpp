namespace ameir_fast {}
