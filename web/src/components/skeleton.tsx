/** A placeholder while data is loading. */
export function Skeleton({ rows = 3 }: { rows?: number | undefined }) {
  return (
    <div className="skeleton" role="status" aria-label="Loading">
      {Array.from({ length: rows }, (_, i) => (
        <span key={i} />
      ))}
    </div>
  );
}
